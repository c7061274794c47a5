"""What a run leaves beside its file has a place, or the run does not begin."""

from __future__ import annotations

import pytest

from smn_core.errors import InvalidArgument
from smn_core.verbs.recorded import require_places, run_folder


def test_a_file_in_the_place_of_a_runs_folder_is_found_before_the_work(tmp_path):
    out = tmp_path / "photos.smn"
    require_places(out)
    run_folder(out).write_text("in the way")
    with pytest.raises(InvalidArgument, match=r"photos\.run.* is no folder: move it away"):
        require_places(out)
