"""Renders a chart by Helm's own library, in a process of its own: Go's runtime has threads, and other tests fork."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "smn"


def rendered(*wanted: tuple[str, dict[str, Any]]) -> list[list[dict[str, Any]] | str]:
    """For each (release, values) the objects, or why Helm refuses. The namespace is smn."""
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(wanted), capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def lint() -> dict[str, Any]:
    """What `helm lint --strict` says of the chart."""
    code = "import helm_python, json, sys; print(json.dumps(helm_python.lint(sys.argv[1], strict=True)))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(CHART)], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def _render(chart: Any, release: str, values: dict[str, Any]) -> list[dict[str, Any]] | str:
    import helm_python

    try:
        chart.validate_schema(values)
        files = chart.render(values, name=release, namespace="smn")
    except helm_python.HelmError as error:
        return str(error)
    texts = [text for name, text in sorted(files.items()) if name.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


if __name__ == "__main__":
    import helm_python

    with helm_python.Chart.load(CHART) as opened:
        print(json.dumps([_render(opened, release, values) for release, values in json.load(sys.stdin)]))
