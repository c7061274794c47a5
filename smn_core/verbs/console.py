"""Where verbs print their tables: a terminal, whose edge folds lines, or a pipe or a file, which has none."""

from __future__ import annotations

from typing import Any

from rich.console import Console

PIPED_WIDTH = 10_000
"""Characters of a line that no terminal shows: a digest, a name or a path stays whole for what reads it."""


def open_console() -> Console:
    """stdout; text of files is shown as it is, never taken for markup."""
    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else _Piped(markup=False, emoji=False, width=PIPED_WIDTH)


class _Piped(Console):
    """Whose lines end where their text does: a table fills each up to the longest."""

    def print(self, *objects: Any, **options: Any) -> None:
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.writelines(f"{line.rstrip(' ')}\n" for line in captured.get().splitlines())
