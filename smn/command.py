"""The `smn` command: collects the verbs of the packages and turns errors into one line and an exit code.

The modules that declare verbs import typer alone; what a verb needs is imported when it runs.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from service.__main__ import app as service_verbs
from smn.bench import app as bench_verbs
from smn.demo import app as demo_verb
from smn.embed import app as embed_verb
from smn.search.verbs import app as search_verbs
from smn.translate import app as translate_verb
from smn_core.__main__ import app as core_verbs
from smn_core.errors import InvalidArgument, SMNError
from smn_core.verbs.heap import keep_freed_memory
from smn_core.verbs.texts import visible
from training.__main__ import app as training_verbs
from training.progress import OF_SIGNAL, number_of, stopping_at_sigterm

MALLOC_TUNED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
"""Variables by which a user tunes glibc's malloc himself."""
# click's UsageError: typer's versions keep it in different places.
USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
UNREAD = 1
"""The exit code where nobody reads stdout any more; click's own."""
SERVING = (["serve"], ["demo"])
"""How the command lines begin of verbs that end their servers by themselves."""
EXTRAS = {"service": "service", "training": "training", "demo": "service,training"}
"""The extras that each package needs beyond the core, and the verb that needs both."""
GROUPS = {
    "Learn and judge": (
        "adapt", "verdict", "train", "recipes", "train-many", "cascade", "evaluate", "probe",
    ),
    "Embed and search": ("embed", "index", "search", "dedupe", "translate"),
    "Look into files, and take them along": ("inspect", "repack", "export"),
    "Serve": ("serve", "push", "pull", "list", "rollback", "alias", "delete"),
    "Keep a registry": ("backup", "restore", "mirror", "gc"),
    "Try and measure": ("demo", "bench"),
}  # fmt: skip
"""How the list of verbs is cut; what is in none stands below."""


class Verbs(TyperGroup):
    """The list of verbs in plain text: loading what draws boxes took .35 s of .55. A verb's own help has them."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        verb = super().get_command(ctx, cmd_name)
        if verb is not None:
            _show_flags_alone(verb, ctx)
        return verb

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:  # typer would make the code of ctrl-C of any signal
            sys.exit(OF_SIGNAL + number_of(stopped))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super(TyperGroup, self).format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        grouped = {name for names in GROUPS.values() for name in names}
        rest = tuple(name for name in self.commands if name not in grouped)
        for title, names in {**GROUPS, "Other verbs": rest}.items():
            told = [(name, (self.commands[name].help or "").split("\n\n")[0]) for name in names]
            if told:
                with formatter.section(title):
                    formatter.write_dl(told)
        with formatter.indentation():
            formatter.write("\nsmn VERB --help shows its options.\n")


def _show_flags_alone(verb: Any, ctx: Any) -> None:
    """Have a verb's help, and that of its own verbs, show `--json` and not `--json <bool>`: a flag takes no value."""
    for option in verb.get_params(ctx):
        if getattr(option, "is_flag", False):
            option.metavar = ""
    for inner in getattr(verb, "commands", {}).values():
        _show_flags_alone(inner, ctx)


app = typer.Typer(
    name="smn",
    cls=Verbs,
    help="One frozen vision backbone, hundreds of specialities: one bit per weight.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(core_verbs)
app.add_typer(embed_verb)
app.add_typer(search_verbs)
app.add_typer(training_verbs)
app.add_typer(translate_verb)
app.add_typer(service_verbs)
app.add_typer(bench_verbs, name="bench")
app.add_typer(demo_verb)


def main() -> None:
    """Run a verb. Exit code 0; 2, with one line on stderr, for what a user can mend; 130 by ctrl-C, 143 by SIGTERM.

    Where nobody reads stdout any more, as behind `| head`, it is 1 and nothing is said.
    """
    if not any(name in os.environ for name in MALLOC_TUNED):
        keep_freed_memory()
    _show_any_name()
    # A kill at once would leave what is half written. A server ends in its own way.
    with nullcontext() if sys.argv[1:2] in SERVING else stopping_at_sigterm():
        try:
            code = _run()
        except OSError as error:
            code = _end_by(error)
        sys.exit(code)


def _run() -> int:
    """Run a verb and return the exit code, or exit with it.

    Raises:
        OSError: a file, or stdout, refused something.
    """
    try:
        _refuse_empty(sys.argv[1:])
        # Not standalone: typer would say a wrong call in a box of six lines.
        code = app(prog_name="smn", standalone_mode=False)
        _flush()
    except USAGE_ERROR as error:
        _refuse_call(error)
        return 0
    except typer.Abort:
        sys.exit(130)
    except ModuleNotFoundError as error:
        _fail(_say_extra(error))
    except SMNError as error:
        _fail(str(error))
    except KeyboardInterrupt as stopped:
        sys.exit(OF_SIGNAL + number_of(stopped))
    return code if isinstance(code, int) else 0


def _end_by(error: OSError) -> int:
    """Say what the system refused, in one line; nothing where nobody reads stdout any more."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
    if isinstance(error, BrokenPipeError):  # from within a verb click hears it
        return UNREAD
    where = f"{error.filename}: " if error.filename else ""
    return _fail(f"{where}{error.strerror or error}")


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _show_any_name() -> None:
    """Print names that are not UTF-8 with escapes: a message must not end a verb that has done its work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse an argument without a text: as a path it is the folder where the user is, which nobody has named.

    A setting of `smn serve` may be empty, as its variable may.

    Raises:
        InvalidArgument: it names the option.
    """
    if words[:1] == ["serve"]:
        return
    for before, word in pairwise(["", *words]):
        if not word or (word.startswith("--") and word.find("=") == len(word) - 1):
            option = word.rstrip("=") or before
            what = option if option.startswith("--") else "an argument"
            raise InvalidArgument(f"{what} is empty: is a variable of the shell not set?")


def _refuse_call(error: Any) -> None:
    """One line on what is wrong with a command line. `smn` alone has asked for nothing, and gets the list of verbs."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help())
        _flush()
        return
    message = " ".join(error.format_message().split()).rstrip(".")
    _fail(f"{message}; try {context.command_path if context else 'smn'} --help")


def _say_extra(error: ModuleNotFoundError) -> str:
    """The extra that brings what a verb could not import.

    Raises:
        ModuleNotFoundError: the same, where no extra does: something of ours is broken.
    """
    missing, verb = (error.name or "").split(".")[0], sys.argv[1] if len(sys.argv) > 1 else ""
    frames = traceback.walk_tb(error.__traceback__)
    packages = {str(frame.f_globals.get("__name__")).split(".")[0] for frame, _ in frames}
    extra = EXTRAS.get(verb) or next((EXTRAS[name] for name in ("training", "service") if name in packages), None)
    if extra is None or missing in ("smn", "smn_core", "service", "training"):
        raise error
    plural = "s" if "," in extra else ""
    return f"{verb} needs {missing}, of the extra{plural} {extra}: uv pip install -e '.[{extra}]' in a clone"


def _fail(message: str) -> NoReturn:
    print(f"smn: error: {visible(message)}", file=sys.stderr)
    sys.exit(2)
