"""Build, up, upload, embed, kill, restart, train, down, up: the Compose file on a real engine, seen from a client.

The tests go on from one another, in their order.
"""

import re
import signal
import threading
import time

import pytest
from engine import run
from images import build, import_bases, size_gb
from independent_client import NPY, IndependentClient, as_npy
from project import Project
from served import SIZE_PX, Theta, eventually, inputs, relative_error
from stack import SECRETS
from test_compose import write_digits

pytestmark = [pytest.mark.docker, pytest.mark.timeout(5400)]

WITHIN_S = 600.0
PORT = 18000
SERVICES = {"redis": 1, "smn": 2, "proxy": 1}
TRAINING = ("--set", "steps=40", "--set", "head_steps=1", "--density", "0.8", "--workers", "1", "--threads", "1")


@pytest.fixture(scope="module")
def project(engine, tmp_path_factory):
    """The images built and everything up, as an operator would."""
    folder = tmp_path_factory.mktemp("project")
    folder.parent.parent.chmod(0o755)
    theta = Theta()
    for name in ("weights", "images"):
        (folder / name).mkdir()
    theta.save(folder / "weights")
    write_digits(folder / "images" / "digits.npz")
    run(["chmod", "-R", "a+rX", str(folder.parent)])
    variables = {
        **SECRETS,
        "SMN_BACKBONE": theta.name,
        "SMN_MODEL_ARG": ",".join(f"{key}={value}" for key, value in theta.args.items()),
        "SMN_WEIGHTS": "/weights/theta.safetensors",
        "SMN_WEIGHTS_DIR": str(folder / "weights"),
        "SMN_IMAGE_SIZE": str(SIZE_PX),
        "SMN_DEVICE": "cpu",
        "SMN_SLOTS": "4",
        "SMN_REPLICAS": "2",
        "SMN_PUBLIC_PORT": str(PORT),
        "SMN_BUILD_GPU": "no",
        "TRAIN_DIR": str(folder / "images"),
        "TRAIN_DATA": "/data/images/digits.npz",
        "TRAIN_RECIPE": "tiny",
        "TRAIN_NAME": "digits",
    }
    began = time.monotonic()
    import_bases(engine, variables)
    say(f"base images: {time.monotonic() - began:.0f} s")
    for name in ("smn", "train"):
        began = time.monotonic()
        build(engine, variables, name)
        image = f"smn:{'latest' if name == 'smn' else 'training'}"
        say(f"{image}: built in {time.monotonic() - began:.0f} s, {size_gb(engine, image):.2f} GB")
    engine.stop()
    engine.start(apart=True)
    project = Project(engine, folder, variables)
    began = time.monotonic()
    project.compose("up", "-d", "--no-build")
    eventually(lambda: all_healthy(project), within_s=WITHIN_S)
    say(f"up, every health check healthy: {time.monotonic() - began:.0f} s")
    url = f"http://127.0.0.1:{PORT}"
    project.theta, project.masks = theta, {}
    project.admin, project.reader = (IndependentClient(url, key=key) for key in ("secret", "reader"))
    yield project
    project.compose("down", "--volumes")


def say(text):
    print(f"test-docker: {text}", flush=True)


def all_healthy(project):
    return all(project.health(name) == ["healthy"] * count for name, count in SERVICES.items())


def embeds(project, name, mask):
    x = inputs(2, seed=5)
    answer = project.reader.embed(as_npy(x), NPY, NPY, mask=name)
    return answer.status == 200 and relative_error(answer.npy, project.theta.embed(x, mask)) < 1e-4


class Traffic:
    """A client that embeds through a mask all the time; what is wrong is kept."""

    def __init__(self, project, name):
        self.project, self.name, self.x = project, name, inputs()
        self.wanted = project.theta.embed(self.x, project.masks[name])
        self.done, self.count, self.wrong = threading.Event(), 0, []
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        while not self.done.is_set():
            answer = self.project.reader.embed(as_npy(self.x), NPY, NPY, mask=self.name)
            if answer.status != 200 or relative_error(answer.npy, self.wanted) > 1e-4:
                self.wrong.append((answer.status, answer.body[:300]))
            self.count += 1

    def more(self, n):
        target = self.count + n
        eventually(lambda: self.count >= target, within_s=WITHIN_S)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def test_every_health_check_is_seen_healthy(project):
    assert {name: project.health(name) for name in SERVICES} == {
        name: ["healthy"] * count for name, count in SERVICES.items()
    }


def test_an_upload_is_embedded_with(project):
    project.masks["m"] = project.theta.mask(1)
    assert project.admin.put_mask("m", project.masks["m"].data).status == 201
    eventually(lambda: embeds(project, "m", project.masks["m"]), within_s=WITHIN_S)


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_files_that_it_cannot_change_no_rights_and_limits(project, service):
    for container in project.containers(service):
        host = project.told(container)["HostConfig"]
        assert host["ReadonlyRootfs"] and host["Memory"] > 0 and host["PidsLimit"] > 0
        code, told = project.inside(container, "touch /etc/x || touch /usr/x")
        assert code != 0 and "Read-only file system" in told
        status = dict(re.findall(r"(\w+):\t(\S+)", project.inside(container, "cat /proc/1/status")[1]))
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2" and int(status["Uid"]) > 0


def test_redis_wants_its_password_and_only_the_servers_reach_it(project):
    (redis,), (proxy,) = project.containers("redis"), project.containers("proxy")
    assert "NOAUTH" in project.inside(redis, "REDISCLI_AUTH= redis-cli ping")[1]
    assert "PONG" in project.inside(redis, "redis-cli ping")[1]
    assert SECRETS["REDIS_PASSWORD"] not in project.inside(redis, "cat /proc/*/cmdline")[1]
    (network,) = project.told(redis)["NetworkSettings"]["Networks"].values()
    ask = f"import socket; socket.create_connection(('{network['IPAddress']}', 6379), 3)"
    assert project.inside(project.containers("smn")[0], f'python -c "{ask}"')[0] == 0
    assert project.inside(proxy, f'python -c "{ask}"')[0] != 0
    assert project.inside(proxy, "getent hosts redis")[0] != 0


def test_no_answer_is_lost_while_a_replica_is_killed(project):
    with Traffic(project, "m") as traffic:
        traffic.more(20)
        project.engine.docker("kill", "--signal", "KILL", project.containers("smn")[0])
        traffic.more(60)
    assert traffic.wrong == []
    say(f"a killed replica: 0 of {traffic.count} requests lost")
    project.compose("up", "-d", "--no-build")
    eventually(lambda: all_healthy(project), within_s=WITHIN_S)


def test_no_answer_is_lost_while_redis_restarts(project):
    with Traffic(project, "m") as traffic:
        traffic.more(20)
        project.compose("restart", "redis")
        traffic.more(20)
        project.masks["later"] = project.theta.mask(2)
        eventually(lambda: project.admin.put_mask("later", project.masks["later"].data).status in (200, 201), WITHIN_S)
    assert traffic.wrong == []
    say(f"a restarted Redis: 0 of {traffic.count} requests lost")
    eventually(lambda: all_healthy(project), within_s=WITHIN_S)


def test_a_stopped_training_run_leaves_a_checkpoint_and_goes_on_from_it(project):
    """`docker stop` sends SIGTERM to PID 1, which is the script; then the same command trains to the end and pushes."""
    words = ("run", "-d", "--name", "stopped", "train", *TRAINING, "--set", "steps=100000")
    project.compose("--profile", "training", *words)
    eventually(lambda: "loss" in project.engine.docker("logs", "stopped"), within_s=WITHIN_S)
    began = time.monotonic()
    project.engine.docker("stop", "--time", "120", "stopped")
    took_s, state = time.monotonic() - began, project.told("stopped")["State"]
    told = project.engine.docker("logs", "stopped")
    assert state["ExitCode"] == 128 + signal.SIGTERM and "checkpoint" in told, told
    project.engine.docker("rm", "stopped")
    say(f"docker stop of a training run: ended with a checkpoint after {took_s:.1f} s")


def test_the_training_profile_pushes_its_mask(project):
    began = time.monotonic()
    told = project.compose("--profile", "training", "run", "--rm", "-T", "train", *TRAINING, "--overwrite")
    assert "digits@1" in told
    say(f"the training profile: mask pushed after {time.monotonic() - began:.0f} s")


def test_everything_is_there_after_down_and_up(project):
    before = project.reader.call("GET", "/masks").json
    assert [entry["name"] for entry in before["data"]] == ["digits", "later", "m"]
    project.compose("down")
    project.compose("up", "-d", "--no-build")
    eventually(lambda: all_healthy(project), within_s=WITHIN_S)
    assert project.reader.call("GET", "/masks").json == before
    for name, mask in project.masks.items():
        assert embeds(project, name, mask), name
    say("down and up: every mask is there, and embeds as before")
