"""Prometheus' rules and Grafana's provisioning: they load, agree with one another and with what a server exposes."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from dockerfile import ROOT

PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "smn.json").read_text())
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
EXPRESSIONS = {
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    },
    **{rule["alert"]: rule["expr"] for rule in RULES},
}
ALWAYS_THERE = {"up"}


@pytest.fixture
def promtool():
    """`promtool(*arguments)`: runs it; what it says."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here: apt-get install prometheus")

    def run(*arguments):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def exposed(client):
    """name -> its labels, of every sample that a running server exposes after a request."""
    assert client.get("/livez").status_code == 200
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        name, labels = re.match(r"(\w+)(?:\{(.*?)\})? ", line).groups()
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels or ""))
    return found


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_metric_and_label_is_one_that_a_server_exposes(exposed, name):
    expression = EXPRESSIONS[name]
    metrics = set(re.findall(r"\b(?:smn_\w+|up)\b", expression))
    assert metrics and metrics <= exposed.keys() | ALWAYS_THERE
    selected = set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", expression))
    grouped = {label.strip() for part in re.findall(r"by \(([^)]*)\)", expression) for label in part.split(",")}
    known = set().union(*(exposed.get(metric, set()) for metric in metrics)) | {"job", "instance"}
    assert selected | grouped <= known


def test_every_expression_of_the_dashboard_parses(promtool, tmp_path):
    rules = [{"record": f"panel:{i}", "expr": expression} for i, expression in enumerate(EXPRESSIONS.values())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


def test_the_alerts_fire_on_what_they_are_for_and_not_otherwise(promtool, tmp_path):
    shutil.copy(PROMETHEUS / "alerts.yml", tmp_path)
    shutil.copy(Path(__file__).parent / "alerts_test.yml", tmp_path)
    tested = {case["alertname"] for test in yaml.safe_load((tmp_path / "alerts_test.yml").read_text())["tests"]
              for case in test["alert_rule_test"]}  # fmt: skip
    assert tested == {rule["alert"] for rule in RULES}
    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / "alerts_test.yml"))


def test_prometheus_takes_its_configuration(promtool, tmp_path):
    text = (PROMETHEUS / "prometheus.yml").read_text()
    assert "/etc/prometheus/alerts.yml" in text
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus", str(PROMETHEUS)))
    assert "valid prometheus config" in promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_the_operations_guide_explains_every_alert():
    guide = (ROOT / "docs" / "operations.md").read_text()
    assert [rule["alert"] for rule in RULES if rule["alert"] not in guide] == []


def test_every_panel_asks_the_provisioned_data_source():
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and source["type"] == "prometheus"
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}


def test_grafana_finds_the_dashboard_where_it_is_mounted():
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "smn.yml").read_text())["providers"]
    folder = provider["options"]["path"]
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == folder
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/smn.json"


def test_panels_have_names_of_their_own_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in panels)
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
