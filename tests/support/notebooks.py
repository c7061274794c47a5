"""Runs a notebook as its reader would, from top to bottom, and writes what it showed into it.

python tests/support/notebooks.py examples/NAME.ipynb [OUT.ipynb]      # after a change of its cells
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

CELL_S = 600
"""So long may a cell take; it says nothing of how fast it is."""


def run(path: Path) -> Any:
    """The notebook with fresh outputs; an error in a cell is raised. Its kernel is this Python."""
    found = nbformat.read(path, as_version=4)
    client = NotebookClient(found, timeout=CELL_S, kernel_name="python3", record_timing=False, coalesce_streams=True)
    # The commands that lie beside this Python, as in an activated environment.
    words = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SMN_")}
    client.execute(env={**plain, "PATH": words, "OMP_NUM_THREADS": "1"}, cwd=str(path.parent))
    for cell in found.cells:
        cell.metadata.clear()
        if "outputs" in cell:
            cell.outputs = join_streams(cell.outputs)
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/jpeg", None)  # the same picture as image/png
    found.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return found


def join_streams(outputs: list[Any]) -> list[Any]:
    """Join what a cell printed in several parts: how many there are is a matter of time."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


if __name__ == "__main__":
    nbformat.write(run(Path(sys.argv[1])), sys.argv[-1])
