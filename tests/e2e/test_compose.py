"""docker-compose.yml's own commands and environment, started as processes of this machine."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from independent_client import NPY, IndependentClient, as_npy
from redis_server import executable, free_port
from served import ROOT, SIZE_PX, ServerProcess, Theta, eventually, inputs, photo, relative_error

VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def filled_in(value, variables):
    """Compose's ${NAME}, ${NAME:-default} and ${NAME:?message}; KeyError where a required one is missing."""
    if isinstance(value, dict):
        return {key: filled_in(part, variables) for key, part in value.items()}
    if isinstance(value, list):
        return [filled_in(part, variables) for part in value]
    if not isinstance(value, str):
        return value

    def fill(match):
        name, kind, rest = match.groups()
        if variables.get(name):
            return variables[name]
        if kind == "?":
            raise KeyError(f"{name}: {rest}")
        return rest or ""

    return VARIABLE.sub(fill, value.replace("$$", "\0")).replace("\0", "$")


def compose(variables):
    return filled_in(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), variables)


class Redis:
    """The compose file's redis: its command, with its volume in `folder` and a port of this machine."""

    def __init__(self, service, folder):
        (volume,) = service["volumes"]
        inside = volume.split(":")[1]
        self.folder, self.port = folder, free_port()
        command = [str(folder) if word == inside else word for word in service["command"]]
        assert command[0] == "redis-server"
        self.command = [executable(), *command[1:], "--port", str(self.port), "--bind", "127.0.0.1"]
        cli = shutil.which("redis-cli") or str(Path(sys.executable).parent / "redis-cli")
        kind, program, *rest = service["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "redis-cli")
        self.health = [cli, "-p", str(self.port), *rest]
        self.process = None

    def start(self):
        self.folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, cwd=self.folder)
        eventually(lambda: subprocess.run(self.health, capture_output=True, check=False).stdout.strip() == b"PONG")

    def stop(self, how=signal.SIGTERM):
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(how)
            process.wait(20)


def health_of(service, server):
    """The exit code of the service's own health check."""
    kind, program, *rest = service["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    here = [word.replace(":8000/", f":{server.port}/") for word in rest]
    return subprocess.run([sys.executable, *here], capture_output=True, check=False).returncode


def test_compose_asks_for_an_admin_key():
    with pytest.raises(KeyError, match="SMN_ADMIN_KEYS"):
        compose({})


def test_every_file_that_compose_mounts_is_there():
    mounted = [
        volume.split(":")[0]
        for service in compose({"SMN_ADMIN_KEYS": "x"})["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./deploy")
    ]
    assert mounted and all((ROOT / path).exists() for path in mounted)


def test_compose_keeps_masks_through_restarts_of_the_service_and_of_redis(tmp_path):
    theta = Theta(args={})
    weights = tmp_path / "weights"
    weights.mkdir()
    theta.save(weights)
    variables = {
        "SMN_ADMIN_KEYS": "secret",
        "SMN_BACKBONE": "test_vit",
        "SMN_WEIGHTS": "/weights/theta.safetensors",
        "SMN_IMAGE_SIZE": str(SIZE_PX),
        "SMN_WEIGHTS_DIR": str(weights),
    }
    services = compose(variables)["services"]
    redis, smn = Redis(services["redis"], tmp_path / "volume"), services["smn"]
    assert 'ENTRYPOINT ["smn"]' in (ROOT / "Dockerfile").read_text()
    (volume,) = smn["volumes"]
    outside, inside, _ = volume.split(":")
    environment = {key: value.replace(f"{inside}/", f"{outside}/") for key, value in smn["environment"].items()}
    port = free_port()
    environment |= {
        "SMN_REGISTRY": environment["SMN_REGISTRY"].replace("redis:6379", f"127.0.0.1:{redis.port}"),
        "SMN_PORT": str(port),
    }
    server = ServerProcess([], tmp_path, environment, port, smn["command"])
    client, mask, x = IndependentClient(server.url, key="secret"), theta.mask(1), inputs()
    wanted = theta.embed(x, mask)

    def embeds():
        answer = client.embed(as_npy(x), NPY, NPY, mask="m")
        return answer.status == 200 and relative_error(answer.npy, wanted) < 1e-4

    try:
        redis.start()
        server.start()
        assert health_of(smn, server) == 0
        assert IndependentClient(server.url).put_mask("m", mask.data).status == 401
        assert client.put_mask("m", mask.data).status == 201
        assert embeds() and client.embed(photo(), "image/png", mask="m").status == 200

        assert server.stop() == 0
        assert health_of(smn, server) != 0
        server.start()
        assert embeds()

        redis.stop()
        assert embeds()  # what is resident goes on
        assert client.put_mask("n", theta.mask(2).data).status == 503
        redis.start()
        eventually(lambda: client.put_mask("n", theta.mask(2).data).status in (200, 201))
        assert embeds()

        assert server.stop() == 0
        redis.stop(signal.SIGTERM)
        redis.start()
        server.start()
        assert embeds()
        assert [item["name"] for item in client.call("GET", "/masks").json["data"]] == ["m", "n"]
    finally:
        server.stop()
        redis.stop()
