"""A Docker engine of its own: data and socket are in a temporary folder, the network is a namespace; all go with it.

Nothing of the machine's own network is changed. Building needs the package index, so it happens on the machine's
network, with no bridge and no rule of a firewall; what is built then runs in a namespace where the engine may do as it
likes. The calling thread enters that namespace, and so do the threads that it starts.
"""

import ctypes
import os
import shutil
import subprocess
import time
from pathlib import Path

CLONE_NEWNET = 0x40000000
PLACES = "/usr/bin:/usr/sbin:/bin:/sbin:" + os.environ["PATH"]  # the client that came with the engine goes first
START_S = 60


def missing():
    """Why no engine can be started here; None where one can."""
    if os.geteuid() != 0:
        return "an engine of its own needs root"
    packages = {"dockerd": "docker.io", "docker": "docker.io", "debootstrap": "debootstrap", "iptables": "iptables"}
    for program, package in packages.items():
        if shutil.which(program, path=PLACES) is None:
            return f"{program} is not here: apt-get install --no-install-recommends {package}"
    if compose_command() is None:
        return "no Compose is here: apt-get install --no-install-recommends docker-compose"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        return "this machine gives no network namespace"
    return None


def compose_command():
    """Compose 2 of the client, or Debian's Compose 1, which does not take the key `name`; None where neither is."""
    docker = shutil.which("docker", path=PLACES)
    done = docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
    if done and done.returncode == 0:
        return [docker, "compose"]
    old = shutil.which("docker-compose", path=PLACES)
    return [old] if old else None


class Engine:
    """dockerd with everything under `folder`."""

    def __init__(self, folder):
        self.folder, self.process = folder, None
        self.socket = folder / "docker.sock"
        self.environment = {
            **os.environ,
            "PATH": PLACES,
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_BUILDKIT": "0",
        }
        self._home = None

    def start(self, apart):
        """Start it on the machine's network, or `apart` in a namespace, which the calling thread enters."""
        places = [f"--{flag}={self.folder / name}" for flag, name in
                  (("data-root", "data"), ("exec-root", "exec"), ("pidfile", "dockerd.pid"))]  # fmt: skip
        command = ["dockerd", *places, f"--host=unix://{self.socket}", f"--storage-driver={self._driver()}"]
        if apart:
            command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
        else:
            command += ["--bridge=none", "--iptables=false", "--ip-forward=false"]
        with (self.folder / "dockerd.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        end = time.monotonic() + START_S
        while subprocess.run(["docker", "info"], env=self.environment, capture_output=True, check=False).returncode:
            told = (self.folder / "dockerd.log").read_text()[-2000:]
            assert self.process.poll() is None and time.monotonic() < end, told
            time.sleep(0.2)
        if apart:
            self._home = os.open("/proc/self/ns/net", os.O_RDONLY)
            enter(Path(f"/proc/{self.process.pid}/ns/net"))

    def stop(self):
        """End it and its containers; the calling thread is back on the machine's network."""
        if self._home is not None:
            enter(Path(f"/proc/self/fd/{self._home}"))
            os.close(self._home)
            self._home = None
        if self.process is not None:
            self.process.terminate()
            self.process.wait(120)
            self.process = None

    def remove(self):
        """Stop, and leave nothing."""
        self.stop()
        for place in sorted(mounts_under(self.folder), key=len, reverse=True):
            subprocess.run(["umount", "--lazy", place], check=True)
        shutil.rmtree(self.folder)

    def docker(self, *words):
        """What a command of the client prints; AssertionError with its words where it fails."""
        return run(["docker", *map(str, words)], env=self.environment)

    def _driver(self):
        """overlay2 where the kernel has it on this disk; vfs copies every layer."""
        known = "overlay" in Path("/proc/filesystems").read_text().split()
        return "overlay2" if known else "vfs"


def run(command, **more):
    """What a command prints, to either stream; AssertionError with it where the command fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)
    assert done.returncode == 0, f"{command}: {done.stdout[-5000:]}"
    return done.stdout


def enter(namespace):
    """Move the calling thread to a network namespace."""
    handle = os.open(namespace, os.O_RDONLY)
    try:
        assert ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(handle)


def mounts_under(folder):
    found = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [place for place in found if Path(place).is_relative_to(folder)]
