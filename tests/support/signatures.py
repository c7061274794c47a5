"""Checks every signature of the packages at run time, shapes too, while the tests run."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

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

ARRAY = re.compile(r"\b(Bool|Shaped|U?Int\d*|Float\d*)\[")

# Of a list beartype checks a random item. Its draws must not move the generator whose state augmentation depends on.
codemain.getrandbits = random.Random(0).getrandbits
# As the language has it (PEP 484): a whole number is also a float. A wrong type is a TypeError, as jaxtyping makes it.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))


def modules() -> list[str]:
    """Every module with signatures to check, by its dotted name; a package's own name would mean all of it."""
    files = [file.relative_to(REPOSITORY) for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")]
    kept = [
        file for file in files if file.name != "__init__.py" and file.as_posix() not in COMPILED | DECLARED | PICKLED
    ]
    return sorted(".".join(file.with_suffix("").parts) for file in kept)


def install() -> None:
    """Check the modules that are imported from now on."""
    jaxtyping.jaxtyped = partial(choose, jaxtyping.jaxtyped)
    jaxtyping.install_import_hook(modules(), "signatures.checked")


def choose(with_shapes: Callable[..., Any], thing: Any = None, **options: Any) -> Any:
    """Check a class or function by jaxtyping where its signature names an array, else by beartype alone.

    jaxtyping takes a tenth of a millisecond for every call, and most signatures have no shapes that it could check. A
    function inside another one is made anew at every call of that one, and so would its check be: it has one only where
    it names an array.
    """
    if thing is None:
        return partial(choose, with_shapes, **options)
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing):
            thing.__init__ = choose(with_shapes, thing.__init__, **options)
        return thing
    if names_array(thing):
        return with_shapes(thing, **options)
    return thing if "<locals>" in thing.__qualname__ else check_types(thing)


def names_array(function: Callable[..., Any]) -> bool:
    """Whether an annotation is one of an array, or a name of one."""
    texts = [str(annotation) for annotation in function.__annotations__.values()]
    names = {name for text in texts for name in re.findall(r"\w+", text)}
    known = [repr(function.__globals__[name]) for name in names & function.__globals__.keys()]
    return any(map(ARRAY.search, texts + known))


def check_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """By beartype; what an annotation names for type checkers alone may be anything, as jaxtyping has it."""
    texts = function.__annotations__
    function.__annotations__ = {name: meaning_of(text, function) for name, text in texts.items()}
    try:
        wrapper: Callable[..., Any] = checked(function)
    finally:
        function.__annotations__ = texts
    wrapper.__annotations__ = texts
    return wrapper


def meaning_of(annotation: Any, function: Callable[..., Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, function.__globals__)
    except Exception:
        return Any


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Let the block's calls go unchecked, where a few are made thousands of times: a check costs more than the call."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
