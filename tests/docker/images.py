"""Base images from Debian's packages, for who reaches no registry of images, and the repository's own on top."""

import os
import shutil
from pathlib import Path

from engine import PLACES, run
from stack import ROOT, compose

MIRROR = "http://deb.debian.org/debian"
PACKAGES = "ca-certificates,curl,nginx-light,python3.11,python3-pip,python3.11-venv,redis-server"
BASE = "python:3.11-slim-bookworm"
INDEX = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL",
         "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")  # fmt: skip
"""How this machine reaches its package index, where variables say so: it goes into the base, which goes at the end."""


def import_bases(engine, variables):
    """One bookworm for all: as the Dockerfile's base, and under the names that Compose has for Redis and the proxy."""
    root = engine.folder / "bookworm"
    run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), MIRROR],
        env={**os.environ, "PATH": PLACES})  # fmt: skip
    # As in the official image: `python`, and a pip that installs.
    (root / "usr/bin/python").symlink_to("python3.11")
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
    (root / "data").mkdir()
    os.chown(root / "data", 999, 999)
    for name in ("etc/ssl/certs/ca-certificates.crt", "etc/pip.conf"):
        if Path("/", name).exists():
            shutil.copy(Path("/", name), root / name)
    shutil.rmtree(root / "var/cache/apt")
    shutil.rmtree(root / "var/lib/apt/lists")
    told = {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}
    told |= {name: os.environ[name] for name in INDEX if os.environ.get(name)}
    changes = [word for name, value in told.items() for word in ("--change", f"ENV {name}={value}")]
    archive = engine.folder / "bookworm.tar"
    run(["tar", "-C", str(root), "-cf", str(archive), "."])
    engine.docker("import", *changes, archive, BASE)
    services = compose(variables)["services"]
    for name in ("redis", "proxy"):
        engine.docker("tag", BASE, services[name]["image"])
    shutil.rmtree(root)
    archive.unlink()


def build(engine, variables, name):
    """Build a service's image with the arguments of the Compose file, on the machine's network."""
    service = compose(variables)["services"][name]
    given = [word for key, value in service["build"]["args"].items() for word in ("--build-arg", f"{key}={value}")]
    engine.docker("build", "--network", "host", *given, "-t", service["image"], ROOT)


def size_gb(engine, image):
    return int(engine.docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e9
