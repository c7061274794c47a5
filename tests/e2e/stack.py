"""docker-compose.yml as processes of this machine: real commands, real environment.

Translated is only what a container would give: names of hosts become addresses of loopback, volumes become folders,
programs are Debian's instead of an image's.
"""

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from dockerfile import FINAL, argument_of, copies
from served import ROOT, ServerProcess, eventually

from benchmarks.redis_server import executable, free_port

VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
REPLICAS = ("127.0.0.2", "127.0.0.3")
SECRETS = {"SMN_ADMIN_KEYS": "secret", "SMN_API_KEYS": "reader", "SMN_KEY": "secret", "REDIS_PASSWORD": "swordfish"}
WITHIN_S = 300.0  # torch takes its time where other work has the cores


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


def compose(variables, name="docker-compose.yml"):
    return filled_in(yaml.safe_load((ROOT / name).read_text()), variables)


def find(name):
    """A program's path; None where it is not installed."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:{Path(sys.executable).parent}")


def program(name, package):
    """A program of Debian, or the test is skipped with the package's name."""
    found = find(name)
    if found is None:
        pytest.skip(f"{name} is not here: apt-get install {package}")
    return found


class Process:
    """A command with its environment and a log; `health` is a command that returns 0 once it is up."""

    def __init__(self, name, command, folder, environment=None, health=None):
        self.name, self.command, self.folder, self.health = name, command, folder, health
        self.environment = environment if environment is not None else dict(os.environ)
        self.process = None

    @property
    def log(self):
        return (self.folder / f"{self.name}.log").read_text()

    def start(self):
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.environment, cwd=self.folder)
        eventually(self._is_up, within_s=WITHIN_S)
        return self

    def _is_up(self):
        assert self.process.poll() is None, self.log[-3000:]
        return self.is_healthy()

    def is_healthy(self):
        done = subprocess.run(self.health, env=self.environment, capture_output=True, check=False)
        return done.returncode == 0

    def stop(self, how=signal.SIGTERM):
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(how)
            process.wait(WITHIN_S)


class Names:
    """Docker's DNS: every name of `hosts` has all of its addresses, other names do not exist."""

    def __init__(self, hosts):
        self.hosts = hosts
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.socket.getsockname())
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                query, sender = self.socket.recvfrom(512)
            except OSError:
                return
            self.socket.sendto(self._answer(query), sender)

    def _answer(self, query):
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        question = query[12 : at + 5]
        found = self.hosts.get(".".join(labels), ())
        flags = 0x8180 if found else 0x8183
        header = query[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0)
        records = [struct.pack(">HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(address) for address in found]
        return header + question + b"".join(records)

    def close(self):
        self.socket.close()


class Stack:
    """The services of the compose file with these variables; volumes and logs are in `folder`."""

    def __init__(self, folder, variables):
        self.folder, self.variables, self.services = folder, variables, compose(variables)["services"]
        self.volumes = folder / "volumes"
        self.redis_port, self.smn_port, self.proxy_port = free_port(), free_port(), free_port()
        self.prometheus_port, self.tls_port = free_port(), free_port()
        # Without nginx the first replica stands where the proxy would, for what is not about the proxy.
        front = f"127.0.0.1:{self.proxy_port}" if find("nginx") else f"{REPLICAS[0]}:{self.smn_port}"
        self.hosts = {"redis:6379": f"127.0.0.1:{self.redis_port}", "proxy:8000": front}
        self.names = Names({"smn": REPLICAS, "smn-replicas": REPLICAS})
        self.replicas = [self._replica(address) for address in REPLICAS]

    @property
    def url(self):
        """Where clients go."""
        return f"http://{self.hosts['proxy:8000']}"

    @property
    def tls_url(self):
        """The same, with docker-compose.tls.yml."""
        return f"https://127.0.0.1:{self.tls_port}"

    def here(self, name, text):
        """A text of the service `name` as it must read on this machine: hosts and volumes."""
        for host, address in self.hosts.items():
            text = text.replace(host, address)
        for volume in self.services[name].get("volumes", []):
            outside, inside = volume.split(":")[:2]
            text = re.sub(rf"(?<![\w./-]){inside}(?![\w.-])", str(self._folder_of(outside)), text)
        return text

    def _folder_of(self, outside):
        if outside.startswith((".", "/")):
            return ROOT / outside
        folder = self.volumes / outside
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def environment(self, name):
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("SMN_", "TRAIN_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        service = {key: self.here(name, value) for key, value in self.services[name]["environment"].items()}
        return {**plain, "OMP_NUM_THREADS": "1", **service, "PATH": path}

    def redis(self):
        """Its shell's own words, with another port; a shell would hand no signal on, so it must be replaced."""
        *shell, script = self.services["redis"]["command"]
        assert shell == ["sh", "-c"] and "exec redis-server - " in script
        script = self.here("redis", script).replace(
            "redis-server - ", f"{executable()} - --port {self.redis_port} --bind 127.0.0.1 "
        )
        kind, test = self.services["redis"]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        client = f"{program('redis-cli', 'redis-server')} -p {self.redis_port}"
        environment = {**os.environ, **self.services["redis"]["environment"]}
        health = ["sh", "-c", test.replace("redis-cli", client)]
        return Process("redis", [*shell, script], self.folder, environment, health)

    def _replica(self, address):
        service = self.services["smn"]
        assert argument_of("ENTRYPOINT") == ["smn"] and "test" not in service["healthcheck"]
        environment = self.environment("smn")
        assert (environment["SMN_HOST"], environment["SMN_PORT"]) == ("0.0.0.0", "8000")
        environment |= {"SMN_HOST": address, "SMN_PORT": str(self.smn_port)}
        return ServerProcess([], self.folder, environment, self.smn_port, service["command"], host=address)

    def health_of(self, replica):
        """The exit code of the image's health check."""
        python, *rest = argument_of("HEALTHCHECK")
        assert python == "python"
        command = [sys.executable, *(word.replace("127.0.0.1", replica.host) for word in rest)]
        return subprocess.run(command, env=replica.environment, capture_output=True, check=False).returncode

    def proxy(self, tls=False):
        """nginx, with the words of docker-compose.tls.yml where it is to speak HTTPS too."""
        service = self.services["proxy"]
        more = compose(self.variables, "docker-compose.tls.yml")["services"]["proxy"] if tls else service
        name, *rest = more["command"]
        assert name == "nginx"
        config = Path(rest[rest.index("-c") + 1])
        (outside,) = [volume.split(":")[0] for volume in service["volumes"] if f":{config.parent}:" in volume]
        temporary = self.folder / ("proxy-tls" if tls else "proxy")
        shutil.copytree(ROOT / outside, temporary, dirs_exist_ok=True)
        changes = {
            "resolver 127.0.0.11 ": f"resolver {self.names.address} ",
            "listen 8000;": f"listen 127.0.0.1:{free_port() if tls else self.proxy_port};",
            "listen 8443 ": f"listen 127.0.0.1:{self.tls_port} ",
            "smn:8000;": f"smn:{self.smn_port};",
            " /tmp/": f" {temporary}/",
            "/etc/smn-tls/": f"{self.variables.get('TLS_DIR', '')}/",
        }
        files = sorted(temporary.glob("*.conf"))
        assert all(any(theirs in file.read_text() for file in files) for theirs in changes)
        for file in files:
            text = file.read_text()
            for theirs, ours in changes.items():
                text = text.replace(theirs, ours)
            file.write_text(text)
        rest[rest.index("-c") + 1] = str(temporary / config.name)
        if os.geteuid() == 0:  # Compose starts it as one ordinary user; root would give its workers to another
            rest[-1] += " user root;"
        kind, *test = service["healthcheck"]["test"]
        assert kind == "CMD"
        health = [program(test[0], test[0]), *(word.replace(":8000/", f":{self.proxy_port}/") for word in test[1:])]
        if tls:  # from outside, by its own port
            health = [health[0], "-fsSk", f"{self.tls_url}/livez"]
        return Process(
            "nginx-tls" if tls else "nginx", [program(name, "nginx-light"), *rest], self.folder, health=health
        )

    def train(self, *flags):
        """Run the training service as `docker compose run train FLAGS`; the finished process."""
        process = self.start_train(*flags)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def start_train(self, *flags):
        """The training service, started; as in a container, what it prints goes to no terminal."""
        service = self.services["train"]
        (source,) = [s for sources, to in copies(FINAL) for s in sources if to == "/usr/local/bin/"]
        assert service["entrypoint"] == [Path(source).name]
        command = [ROOT / source, *service["command"], *flags]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment("train"), stdout=pipe, stderr=pipe, text=True)

    def prometheus(self):
        service = self.services["prometheus"]
        command = [self.here("prometheus", word) for word in service["command"]]
        flag = next(word for word in command if word.startswith("--config.file="))
        config = yaml.safe_load(Path(flag.partition("=")[2]).read_text())
        config["rule_files"] = [self.here("prometheus", path) for path in config["rule_files"]]
        for job in config["scrape_configs"]:
            # Prometheus asks the system's resolver alone, so here the names are resolved for it.
            job["static_configs"] = [
                {"targets": [f"{address}:{self.smn_port}" for address in self.names.hosts[name]]}
                for lookup in job.pop("dns_sd_configs")
                for name in lookup["names"]
                if (lookup["type"], lookup["port"]) == ("A", 8000)
            ]
        translated = self.folder / "prometheus.yml"
        translated.write_text(yaml.safe_dump(config))
        command[command.index(flag)] = f"--config.file={translated}"
        command.append(f"--web.listen-address=127.0.0.1:{self.prometheus_port}")
        kind, *test = service["healthcheck"]["test"]
        assert kind == "CMD"
        health = [
            program(test[0], test[0]),
            *(word.replace(":9090/", f":{self.prometheus_port}/") for word in test[1:]),
        ]
        return Process("prometheus", [program("prometheus", "prometheus"), *command], self.folder, health=health)
