"""Checks every signature of the packages at run time, shapes too, while the tests run."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype._check.code import codemain

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("smn_core", "service", "training")
# numba and Triton compile the functions themselves, not the wrappers that check them.
COMPILED = {
    "smn_core/contextual/loop.py",
    "smn_core/engine/loop.py",
    "smn_core/engine/mixed/compiled.py",
    "smn_core/engine/kernels/linear.py",
    "smn_core/engine/kernels/unpack.py",
}
# Ray pickles its actors by value; the wrappers that check hold weak references, which cannot be pickled.
PICKLED = {f"service/on_ray/{name}.py" for name in ("application", "ingress", "placement", "remote", "replica")}
# typer hands a command a context of another class than the one that the command must name.
DECLARED = {"service/__main__.py"}

# Of a list beartype checks a random item. Its draws must not move the generator whose state augmentation depends on.
codemain.getrandbits = random.Random(0).getrandbits
# As the language has it (PEP 484): a whole number is also a float.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def modules() -> list[str]:
    """Every module with signatures to check, by its dotted name; a package's own name would mean all of it."""
    files = [file.relative_to(REPOSITORY) for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")]
    kept = [
        file for file in files if file.name != "__init__.py" and file.as_posix() not in COMPILED | DECLARED | PICKLED
    ]
    return sorted(".".join(file.with_suffix("").parts) for file in kept)


def install() -> None:
    """Check the modules that are imported from now on."""
    jaxtyping.install_import_hook(modules(), "signatures.checked")


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Let the block's calls go unchecked, where a few are made thousands of times: a check costs more than the call."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
