"""What the verbs `smn train` and `smn recipes` say at their end."""

from __future__ import annotations

import shlex

from smn_core.verbs import show
from smn_core.verbs.stderr import end_by, name_unreadable, note
from training.recipes import describe_recipes
from training.request import Request, Result
from training.run import NOTHING_OFF


def tell_result(request: Request, result: Result) -> None:
    """Say what a run left. A mask that changes nothing is a warning, and no success."""
    name_unreadable(result.skipped)
    what = f"density {result.mask.density:.6f}, {result.mask.n_off} OFF, " if result.mask else ""
    note(f"{request.out}: {what}last loss {result.final_loss:.4f}, {result.seconds:.0f} s; run: {request.folder}")
    if result.mask is not None and not result.mask.n_off:
        note(f"warning: {NOTHING_OFF}")
    elif result.mask is not None:
        note(f"next: smn serve {shlex.quote(str(request.out))}")
    end_by(result.skipped)


def tell_recipes(*, as_json: bool) -> None:
    """List the recipes with when to take which."""
    rows = describe_recipes()
    if as_json:
        show.as_json(rows)
    else:
        show.table(("recipe", "when"), [(row["name"], row["when"]) for row in rows])
