"""docker-compose.yml: what it asks for, and all its services at work together (see stack.py)."""

import json
import os
import re
import shlex
import signal
import subprocess
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from independent_client import NPY, IndependentClient, as_npy
from served import ROOT, SIZE_PX, Theta, eventually, inputs, photo, relative_error
from sklearn.datasets import load_digits
from stack import REPLICAS, SECRETS, WITHIN_S, Stack, compose, find, program

pytestmark = pytest.mark.timeout(900)  # several servers start one after the other

EXAMPLE = (ROOT / ".env.example").read_text()
FILES = ("docker-compose.yml", "docker-compose.gpu.yml", "docker-compose.tls.yml")
TEXTS = {name: (ROOT / name).read_text() for name in FILES}


@pytest.mark.parametrize("name", ["SMN_ADMIN_KEYS", "REDIS_PASSWORD"])
def test_compose_asks_for_two_secrets(name):
    with pytest.raises(KeyError, match=f"{name}: set it"):
        compose({other: value for other, value in SECRETS.items() if other != name})


def test_compose_asks_for_nothing_else():
    assert compose({"SMN_ADMIN_KEYS": "x", "REDIS_PASSWORD": "y"})["services"]


def test_every_variable_is_explained_in_the_example_and_no_other_is():
    used = {name for text in TEXTS.values() for name in re.findall(r"(?<!\$)\$\{(\w+)", text)}
    explained = set(re.findall(r"^#?(\w+)=", EXAMPLE, re.MULTILINE))
    assert used == explained


def test_the_example_shows_the_true_defaults():
    from service.settings import Settings

    shown = {name: value for name, value in re.findall(r"^#(\w+)=(.*)$", EXAMPLE, re.MULTILINE) if value}
    in_file = {name: default for text in TEXTS.values() for name, default in re.findall(r"\$\{(\w+):-([^}]+)\}", text)}
    assert all(shown[name] == default for name, default in in_file.items())
    for name in shown.keys() - in_file.keys():
        assert shown[name] == str(Settings.model_fields[name.removeprefix("SMN_").lower()].default), name


def test_every_variable_of_the_server_is_one_of_its_settings():
    from service.settings import Settings

    names = {f"SMN_{name}".upper() for name in Settings.model_fields}
    assert set(compose(SECRETS)["services"]["smn"]["environment"]) - names == {"HF_TOKEN"}  # the Hub's client reads it


def test_the_folders_that_the_example_names_are_where_it_says():
    """A setting that names a folder of the container is of use only where something is mounted there."""
    inside = {volume.split(":")[1] for volume in compose(SECRETS)["services"]["smn"]["volumes"]}
    named = set(re.findall(r"SMN_(?:WEIGHTS|GALLERY)=(/\w+)", EXAMPLE))
    assert named == {"/weights", "/gallery"} and named <= inside


def test_the_training_image_reads_the_photos_that_the_servers_read():
    (servers,) = re.findall(r"^ARG EXTRAS=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    extras = compose(SECRETS)["services"]["train"]["build"]["args"]["EXTRAS"].split(",")
    assert "heic" in servers.split(",") and "heic" in extras and "training" in extras


def test_every_file_that_compose_mounts_is_there():
    mounted = [
        volume.split(":")[0]
        for service in compose(SECRETS)["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./deploy")
    ]
    assert mounted and all((ROOT / path).exists() for path in mounted)


def test_every_named_volume_is_declared_and_used():
    whole = compose(SECRETS)
    volumes = [volume.split(":")[0] for service in whole["services"].values() for volume in service.get("volumes", [])]
    assert {volume for volume in volumes if not volume.startswith(".")} == set(whole["volumes"])


def test_a_service_waits_for_those_that_it_needs_to_be_healthy():
    services = compose(SECRETS)["services"]
    needs = {name: service.get("depends_on", {}) for name, service in services.items()}
    assert {name: set(needed) for name, needed in needs.items() if needed} == {
        "smn": {"redis"},
        "proxy": {"smn"},
        "train": {"proxy"},
        "grafana": {"prometheus"},
    }
    for needed in needs.values():
        for name, how in needed.items():
            assert how == {"condition": "service_healthy"} and "healthcheck" in services[name]


def test_the_server_has_more_time_to_stop_than_it_may_take():
    """A drain, then as long again for connections that still write their answers."""
    smn = compose(SECRETS)["services"]["smn"]
    assert float(smn["stop_grace_period"].removesuffix("s")) > 2 * float(smn["environment"]["SMN_DRAIN_S"])


def test_redis_keeps_everything_and_evicts_nothing():
    script = compose(SECRETS)["services"]["redis"]["command"][-1]
    words = shlex.split(script.partition("<<")[0].replace("\\\n", " "))
    assert words[:3] == ["exec", "redis-server", "-"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--appendonly"] == "yes" and options["--maxmemory-policy"] == "noeviction"
    assert options["--maxmemory"] == "2gb" and options["--dir"] == "/data"


def test_the_gpu_file_gives_a_gpu_and_the_cuda_build_to_what_runs_a_model():
    base, gpu = compose(SECRETS)["services"], compose({}, "docker-compose.gpu.yml")["services"]
    assert set(gpu) == {name for name, service in base.items() if "build" in service}
    for service in gpu.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia" and "gpu" in device["capabilities"]
        assert service["build"]["args"] == {"DEVICE": "cuda", "GPU": "yes"} and service["environment"] == {
            "SMN_DEVICE": "cuda"
        }


def test_a_container_has_files_that_it_cannot_change_no_rights_and_limits():
    for name, service in compose(SECRETS)["services"].items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"] and service["pids_limit"] > 0, name
        assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service), name


def test_only_the_servers_share_a_network_with_redis():
    whole = compose(SECRETS)
    networks = {name: set(service.get("networks", ["default"])) for name, service in whole["services"].items()}
    assert {name for name, found in networks.items() if "registry" in found} == {"redis", "smn"}
    assert networks["redis"] == {"registry"} and whole["networks"]["registry"] == {"internal": True}
    assert networks["grafana"] == {"observability"} and "ports" not in whole["services"]["redis"]


def test_the_password_of_redis_is_that_of_the_servers_and_in_no_command():
    services = compose(SECRETS)["services"]
    assert services["smn"]["environment"]["SMN_REGISTRY"] == "redis://:swordfish@redis:6379/0"
    assert services["redis"]["environment"] == {"REDISCLI_AUTH": "swordfish"}
    assert "requirepass $REDISCLI_AUTH" in services["redis"]["command"][-1]


def write_digits(path):
    """scikit-learn's digits as the trainer reads them."""
    found = load_digits()
    pixels = np.repeat(np.repeat(found.images, 4, 1), 4, 2) * 255 / 16
    images = np.repeat(pixels.astype(np.uint8)[..., None], 3, 3)
    np.savez(path, x_train=images[:600], y_train=found.target[:600], x_test=images[600:], y_test=found.target[600:])


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Redis, two replicas and the proxy, up; the observability and training services at hand."""
    folder = tmp_path_factory.mktemp("stack")
    theta = Theta()
    for name in ("weights", "images"):
        (folder / name).mkdir()
    theta.save(folder / "weights")
    write_digits(folder / "images" / "digits.npz")
    variables = {
        **SECRETS,
        "SMN_BACKBONE": theta.name,
        "SMN_MODEL_ARG": ",".join(f"{key}={value}" for key, value in theta.args.items()),
        "SMN_WEIGHTS": "/weights/theta.safetensors",
        "SMN_WEIGHTS_DIR": str(folder / "weights"),
        "SMN_IMAGE_SIZE": str(SIZE_PX),
        "SMN_DEVICE": "cpu",
        "SMN_SLOTS": "4",
        "TRAIN_DIR": str(folder / "images"),
        "TRAIN_DATA": "/data/images/digits.npz",
        "TRAIN_RECIPE": "tiny",
        "TRAIN_NAME": "digits",
    }
    stack = Stack(folder, variables)
    redis, proxy = stack.redis(), stack.proxy() if find("nginx") else None
    try:
        redis.start()
        for replica in stack.replicas:
            replica.start(wait=False)
        for replica in stack.replicas:
            replica.wait(WITHIN_S)
        if proxy:
            proxy.start()
        admin, reader = (IndependentClient(stack.url, key=key) for key in ("secret", "reader"))
        yield SimpleNamespace(stack=stack, redis=redis, proxy=proxy, admin=admin, reader=reader, theta=theta)
    finally:
        if proxy:
            proxy.stop()
        for replica in stack.replicas:
            replica.stop()
        redis.stop()
        stack.names.close()


@pytest.fixture
def proxied(running):
    """What runs, where a proxy is part of it."""
    program("nginx", "nginx-light")
    return running


class Traffic:
    """One client that embeds through a mask all the time; every answer that is not right is kept."""

    def __init__(self, running, name, mask):
        self.x = inputs()
        self.client, self.name = running.reader, name
        self.wanted, self.digest = running.theta.embed(self.x, mask), mask.digest
        self.done, self.count, self.wrong = threading.Event(), 0, []
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        while not self.done.is_set():
            answer = self.client.embed(as_npy(self.x), NPY, NPY, mask=self.name)
            right = answer.status == 200 and answer.headers["x-smn-digest"] == self.digest
            if not right or relative_error(answer.npy, self.wanted) > 1e-4:
                self.wrong.append((answer.status, answer.body[:300]))
            self.count += 1

    def more(self, n=5):
        """Wait until `n` more requests were answered."""
        target = self.count + n
        eventually(lambda: self.count >= target, within_s=WITHIN_S)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def embeds(running, name, mask, client=None):
    """Whether a mask is served, and right."""
    x = inputs(2, seed=5)
    answer = (client or running.reader).embed(as_npy(x), NPY, NPY, mask=name)
    return answer.status == 200 and relative_error(answer.npy, running.theta.embed(x, mask)) < 1e-4


def answered(replica):
    """Embeddings that a replica has answered since it started."""
    text = IndependentClient(replica.url).call("GET", "/metrics").body.decode()
    return sum(map(float, re.findall(r'smn_request_total\{outcome="ok",route="/embed"\} (\S+)', text)))


def shares(running, n_requests):
    """How many of so many requests through the proxy each replica took."""
    before = [answered(replica) for replica in running.stack.replicas]
    for _ in range(n_requests):
        assert running.reader.embed(photo(), "image/png").status == 200
    return [answered(replica) - old for replica, old in zip(running.stack.replicas, before, strict=True)]


def test_both_replicas_are_healthy_by_the_images_own_check(running):
    assert [running.stack.health_of(replica) for replica in running.stack.replicas] == [0, 0]


def test_the_proxy_gives_both_replicas_their_share(proxied):
    assert min(shares(proxied, 40)) >= 5


def test_the_proxy_notices_a_replica_that_leaves_and_one_that_joins(proxied):
    hosts = proxied.stack.names.hosts
    hosts["smn"] = REPLICAS[:1]
    try:
        eventually(lambda: shares(proxied, 10) == [10, 0], within_s=WITHIN_S)
    finally:
        hosts["smn"] = REPLICAS
    eventually(lambda: shares(proxied, 10)[1] > 0, within_s=WITHIN_S)


def test_an_upload_through_the_proxy_is_served_by_every_replica(running):
    mask = running.theta.mask(1)
    assert IndependentClient(running.stack.url).put_mask("m", mask.data).status == 401
    assert running.reader.put_mask("m", mask.data).status == 403
    assert running.admin.put_mask("m", mask.data).status == 201
    for replica in running.stack.replicas:
        client = IndependentClient(replica.url, key="reader")
        eventually(lambda client=client: embeds(running, "m", mask, client), within_s=WITHIN_S)
    assert running.reader.embed(photo(), "image/png", mask="m").status == 200


def test_the_proxy_answers_for_itself_in_the_one_error_body(proxied):
    large = proxied.reader.embed(bytes(64 * 2**20 + 1), "image/png")
    hidden = proxied.reader.call("GET", "/metrics")
    for answer, status, code in ((large, 413, "body_too_large"), (hidden, 404, "no_such_route")):
        assert answer.status == status and answer.headers["content-type"] == "application/json"
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}
        assert answer.json["error"]["code"] == code


def test_redis_wants_its_password(running):
    port, cli = running.stack.redis_port, program("redis-cli", "redis-server")
    plain = {key: value for key, value in os.environ.items() if key != "REDISCLI_AUTH"}
    for password, told in ((None, "NOAUTH"), ("swordfish", "PONG")):
        given = plain if password is None else {**plain, "REDISCLI_AUTH": password}
        done = subprocess.run([cli, "-p", str(port), "ping"], env=given, capture_output=True, text=True, check=False)
        assert told in done.stdout + done.stderr
    listed = Path(f"/proc/{running.redis.process.pid}/cmdline").read_bytes()
    assert b"redis-server" in listed and b"swordfish" not in listed


def test_the_trainer_learns_a_mask_and_pushes_it(running):
    flags = ["--set", "steps=4", "--set", "head_steps=1", "--density", "0.8", "--workers", "0", "--threads", "1"]
    done = running.stack.train(*flags)
    assert done.returncode == 0, done.stderr
    name, version = done.stdout.split()[0].split("@")
    assert (name, version) == ("digits", "1")
    entry = running.reader.call("GET", "/masks/digits").json
    assert json.loads(entry["metadata"]["recipe"])["name"] == "tiny"
    answer = running.reader.embed(photo(), "image/png", mask="digits")
    assert answer.status == 200 and answer.json["mask"]["digest"] == entry["current"]["digest"]
    root = running.reader.embed(photo(), "image/png")
    assert relative_error(answer.embeddings, root.embeddings) > 1e-3
    again = running.stack.train(*flags)  # goes on from its checkpoint, finds nothing left, pushes the same
    assert again.returncode == 0 and again.stdout.split()[0] == "digits@1", again.stderr


def test_a_trainer_that_is_stopped_hands_the_signal_on_and_leaves_a_checkpoint(running):
    """`docker stop` and Kubernetes send SIGTERM to the script alone."""
    out = running.stack.volumes / "runs" / "stopped.smn"
    flags = ["--set", "steps=100000", "--set", "head_steps=1", "--workers", "0", "--threads", "1", "--out", str(out)]
    process = running.stack.start_train(*flags)
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 128 + signal.SIGTERM, "".join(told) + stderr
    assert "with a checkpoint" in stderr and (out.parent / "stopped.run" / "last.ckpt").stat().st_size
    assert stdout == "" and not out.exists()


@pytest.mark.parametrize(("key", "message"), [("", "SMN_KEY: set it to an admin key"), ("wrong", "not known")])
def test_the_trainer_stops_before_it_trains_where_it_could_not_push(running, key, message):
    keys = running.stack.services["train"]["environment"]
    right, keys["SMN_KEY"] = keys["SMN_KEY"], key
    try:
        done = running.stack.train("--set", "steps=1")
    finally:
        keys["SMN_KEY"] = right
    assert done.returncode == 2 and message in done.stderr and "loss" not in done.stderr


def test_prometheus_scrapes_every_replica_and_answers_every_panel(running):
    prometheus = running.stack.prometheus()

    def ask(path, **parameters):
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{running.stack.prometheus_port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            body = json.load(answer)
        assert body["status"] == "success"
        return body["data"]

    try:
        prometheus.start()
        mask = running.theta.mask(11)
        assert running.admin.put_mask("watched", mask.data).status == 201

        def scraped_twice_with_traffic():
            embeds(running, "watched", mask)
            targets = ask("targets")["activeTargets"]
            up = [target["health"] for target in targets] == ["up", "up"]
            return up and ask("query", query="min(count_over_time(up[1m])) >= 3")["result"]

        eventually(scraped_twice_with_traffic, within_s=WITHIN_S)
        counted = ask("query", query="sum(smn_request_total)")["result"]
        assert float(counted[0]["value"][1]) > 0
        rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
        assert rules and all(rule["health"] == "ok" for rule in rules if rule["health"] != "unknown")
        empty = {}
        dashboard = json.loads((ROOT / "deploy/grafana/dashboards/smn.json").read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                found = ask("query", query=target["expr"])["result"]
                if not found:
                    empty[panel["title"]] = target["expr"]
        assert empty == {}
    finally:
        prometheus.stop()


def test_no_answer_is_lost_while_one_replica_restarts_and_then_the_other_dies(proxied):
    mask = proxied.theta.mask(2)
    assert proxied.admin.put_mask("rolling", mask.data).status == 201
    restarted, killed = proxied.stack.replicas
    with Traffic(proxied, "rolling", mask) as traffic:
        traffic.more()
        assert restarted.stop() == 0
        assert proxied.stack.health_of(restarted) != 0
        traffic.more(20)
        restarted.start(wait=False).wait(WITHIN_S)
        traffic.more()
        killed.stop(signal.SIGKILL)
        traffic.more(20)
    killed.start(wait=False).wait(WITHIN_S)
    assert traffic.wrong == []


def says_registry_is_away(told):
    """Still ready, for what is resident goes on; a probe looks each second."""
    return told.status == 200 and any("registry" in reason for reason in told.json["reasons"])


def test_masks_survive_a_crash_of_redis_and_a_restart_of_everything(running):
    masks = {f"kept-{seed}": running.theta.mask(seed) for seed in (3, 4)}
    for name, mask in masks.items():
        assert running.admin.put_mask(name, mask.data).status == 201
    assert running.admin.put_mask("kept-3", running.theta.mask(5).data).status == 201
    back = running.admin.call("PUT", "/masks/kept-3/current", b'{"version": 1}', Content_Type="application/json")
    assert back.status == 200
    for replica in running.stack.replicas:
        client = IndependentClient(replica.url, key="reader")
        for name, mask in masks.items():
            eventually(lambda n=name, m=mask, c=client: embeds(running, n, m, c), within_s=WITHIN_S)
    before = running.admin.call("GET", "/masks").json

    with Traffic(running, "kept-4", masks["kept-4"]) as traffic:
        running.redis.stop(signal.SIGKILL)
        traffic.more()  # what is resident goes on
        refused = running.admin.put_mask("refused", running.theta.mask(6).data)
        assert refused.status == 503 and refused.headers["retry-after"]
        probe = IndependentClient(running.stack.replicas[0].url)
        eventually(lambda: says_registry_is_away(probe.call("GET", "/readyz")), within_s=WITHIN_S)
        running.redis.start()
        late = running.theta.mask(7)
        eventually(lambda: running.admin.put_mask("late", late.data).status in (200, 201), within_s=WITHIN_S)
        traffic.more()
    assert traffic.wrong == []

    for replica in running.stack.replicas:
        assert replica.stop() == 0
    if running.proxy:
        away = running.reader.embed(photo(), "image/png")
        assert away.status == 503 and away.headers["retry-after"] and away.json["error"]["code"] == "unavailable"
    running.redis.stop()
    running.redis.start()
    for replica in running.stack.replicas:
        replica.start(wait=False)
    for replica in running.stack.replicas:
        replica.wait(WITHIN_S)
    for name, mask in {**masks, "late": late}.items():
        assert embeds(running, name, mask), name
    after = running.admin.call("GET", "/masks").json
    assert [item for item in after["data"] if item["name"] != "late"] == before["data"]
    assert running.reader.call("GET", "/masks/refused").status == 404


def test_the_files_are_yaml_without_duplicate_keys():
    """PyYAML takes the last of two equal keys in silence; Compose refuses the file."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
            return super().construct_mapping(node, deep)

    for text in TEXTS.values():
        yaml.load(text, Strict)
