"""Where, when and how the rows of one table were measured, told once below it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.kept import Row


class Sources:
    """What rows have in common is said once; where they differ, each kind has a letter."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._parts = list(dict.fromkeys(map(_parts, rows)))

    @property
    def several(self) -> bool:
        return len(self._parts) > 1

    def letter(self, row: Row) -> str:
        return chr(ord("a") + self._parts.index(_parts(row)))

    def mark(self, row: Row, other: str) -> str:
        """The letter of a row that has another source than the rest of its line."""
        letter = self.letter(row)
        return "" if letter == other else f" <sup>{letter}</sup>"

    def text(self) -> str:
        """One paragraph: machine, date, load, commit and command."""
        same = [part for part in self._parts[0] if all(part in parts for parts in self._parts)]
        told = f"Measured on {', '.join(part for part in same if part)}"
        if not self.several:
            return f"{told}."
        rest = [", ".join(part for part in parts if part and part not in same) for parts in self._parts]
        return f"{told}. " + " ".join(f"{chr(ord('a') + number)}: {text}." for number, text in enumerate(rest))


def _parts(row: Row) -> tuple[str, ...]:
    """Machine, date, load, commit, command; empty where a row does not have it."""
    command = row.get("command") or ""
    machine, _, load = row.get("machine", "").partition(", load ")
    quick = " (a quick run)" if "--quick" in command.split() else ""
    return (
        row["device"].removeprefix("cpu: "),
        machine,
        row.get("date", "")[:10] or "no date",
        f"load {load}" if load else "",
        f"commit {row['commit']}",
        f"`{command}`{quick}" if command else "",
    )
