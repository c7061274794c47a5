"""The `smn` command: collects the verbs of the packages and turns errors into one line and an exit code.

The modules that declare verbs import typer alone; what a verb needs is imported when it runs.
"""

from __future__ import annotations

import sys

import typer

from service.__main__ import app as service_verbs
from smn_core.__main__ import app as core_verbs
from smn_core.errors import SMNError
from training.__main__ import app as training_verbs

app = typer.Typer(
    name="smn",
    help="One frozen vision backbone, hundreds of specialities: one bit per weight.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(core_verbs)
app.add_typer(training_verbs)
app.add_typer(service_verbs)


def main() -> None:
    """Run a verb. Exit code 0; 2 for anything the user can mend, with one line on stderr; 130 for ctrl-C."""
    try:
        app()
    except SMNError as error:
        _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"smn: error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
