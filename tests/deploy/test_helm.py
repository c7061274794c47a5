"""deploy/helm/smn: Helm renders it to the objects of deploy/kubernetes, and Kubernetes' schemas take them."""

import copy
import json

import pytest
import yaml
from charts import CHART, ROOT, lint, rendered

from service.settings import Settings

pytest.importorskip("helm_python", reason="no Helm: uv pip install -e '.[dev]'")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="no schemas: uv pip install -e '.[dev]'")

DEPLOY = ROOT / "deploy"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
EVERYTHING = {
    "image": {"digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "settings": {"SMN_CACHE_BYTES": 2**31, "SMN_CROP_PCT": 0.875, "SMN_NO_CONSOLE": True, "SMN_DTYPE": "bfloat16"},
    "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "redis": {"storageClass": "fast"},
    "ingress": {"enabled": True, "host": "smn.example.org", "tlsSecret": "smn-tls", "annotations": {"a": "b"}},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
}
ELSEWHERE = {"redis": {"enabled": False}, "registry": {"url": "rediss://:$(REDIS_PASSWORD)@cache:6380/0", "port": 6380}}
PLAIN_SWITCHES = {"ingress": {"enabled": True}}
CRDS = {"ServiceMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator: Kubernetes has no schema of them."""
REFUSED = {
    "a value that nobody knows": ({"replica": 3}, "replica"),
    "a setting that is no variable of the server": ({"settings": {"BACKBONE": "resnet50"}}, "BACKBONE"),
    "a setting that the chart gives itself": ({"settings": {"SMN_HOST": "::"}}, "SMN_HOST"),
    "no registry": ({"redis": {"enabled": False}}, "/registry/url"),
    "a registry in a folder of the pod": (
        {"redis": {"enabled": False}, "registry": {"url": "/masks"}},
        "/registry/url",
    ),
    "a certificate without a host": ({"ingress": {"enabled": True, "tlsSecret": "tls"}}, "/ingress/host"),
    "half a replica": ({"replicas": 0.5}, "/replicas"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "/image/digest"),
}


@pytest.fixture(scope="module")
def all_rendered():
    """(release, values) rendered, by a name for each."""
    wanted = {
        "defaults": ("smn", {}),
        "plain": ("smn", PLAIN_SWITCHES),
        "everything": ("smn", EVERYTHING),
        "elsewhere": ("smn", ELSEWHERE),
        "other": ("other", EVERYTHING),
        "nothing": ("smn", {name: {"enabled": False} for name in ("podDisruptionBudget", "networkPolicy")}),
        **{what: ("smn", values) for what, (values, _) in REFUSED.items()},
    }
    return dict(zip(wanted, rendered(*wanted.values()), strict=True))


def by_name(objects):
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(found) == len(objects)
    return found


def plain():
    """The objects of deploy/kubernetes that the chart makes too, and the settings as kustomize makes them."""
    names = ("smn", "redis", "ingress", "network")
    texts = [(DEPLOY / "kubernetes" / f"{name}.yaml").read_text() for name in names]
    lines = (DEPLOY / "kubernetes" / "settings.env").read_text().splitlines()
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "smn-settings"},
                "data": dict(line.split("=", 1) for line in lines)}  # fmt: skip
    found = by_name([*(one for text in texts for one in yaml.safe_load_all(text)), settings])
    # Of the namespace as a whole, of what the chart leaves to others, and of Ray.
    for name in ("nobody", "smn-training", "prometheus", "grafana", "smn-ray"):
        del found["NetworkPolicy", name]
    return found


def without_labels_of_helm(one):
    """A rendered object less what a chart adds to every object, with the names of the plain ones."""
    text = json.dumps(one).replace("smn-redis", "redis").replace("smn-names", "names")
    one = json.loads(text)
    for meta in (one["metadata"], one["spec"].get("template", {}).get("metadata", {}) if "spec" in one else {}):
        labels = {k: v for k, v in meta.pop("labels", {}).items() if "kubernetes.io/" not in k and "helm.sh/" not in k}
        notes = {k: v for k, v in meta.pop("annotations", {}).items() if k != "checksum/settings"}
        meta.update({name: said for name, said in (("labels", labels), ("annotations", notes)) if said})
    return one


def as_the_chart_means(one):
    """A plain object with what the chart says otherwise, on purpose."""
    one = copy.deepcopy(one)
    match one["kind"], one["metadata"]["name"]:
        case "Deployment", "smn":
            (container,) = one["spec"]["template"]["spec"]["containers"]
            (image,) = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["images"]
            assert container["image"] == image["name"]
            container["image"] = f"{image['newName']}:{image['newTag']}"
        case "NetworkPolicy", "names":  # the release's pods alone, not the namespace's
            labels = {"app.kubernetes.io/name": "smn", "app.kubernetes.io/instance": "smn"}
            one["spec"]["podSelector"] = {"matchLabels": labels}
        case "NetworkPolicy", "redis":  # the chart has no Ray
            (rule,) = one["spec"]["ingress"]
            rule["from"].remove({"podSelector": {"matchLabels": {"app": "smn-ray"}}})
    return one


def test_its_objects_are_those_of_the_plain_manifests(all_rendered):
    chart = by_name([without_labels_of_helm(one) for one in all_rendered["plain"]])
    manifests = {key: as_the_chart_means(one) for key, one in plain().items()}
    assert set(chart) == set(manifests)
    for key, one in manifests.items():
        assert chart[key] == one, key


def test_by_default_it_leaves_the_ingress_out(all_rendered):
    plain_keys, keys = set(by_name(all_rendered["plain"])), set(by_name(all_rendered["defaults"]))
    assert plain_keys - keys == {("Ingress", "smn"), ("Ingress", "smn-embed")} and keys < plain_keys


@pytest.mark.parametrize("version", ["1.27", kubernetes_validate.latest_version()])
def test_kubernetes_schemas_take_every_object(all_rendered, version):
    kinds = set()
    for one in [*all_rendered["everything"], *all_rendered["elsewhere"]]:
        if one["kind"] not in CRDS:
            kubernetes_validate.validate(one, version, strict=True)
            kinds.add(one["kind"])
    assert kinds == {
        "ConfigMap", "Deployment", "StatefulSet", "Service", "Ingress", "NetworkPolicy", "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
    }  # fmt: skip
    assert {one["kind"] for one in all_rendered["everything"]} - kinds == CRDS


def test_kubernetes_schemas_take_the_plain_manifests_too():
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            if one["kind"] != "RayService":
                kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_a_schema_refuses_what_is_wrong(all_rendered):
    """Else the two tests before could not fail."""
    wrong = copy.deepcopy(by_name(all_rendered["everything"])["Deployment", "smn"])
    wrong["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="redinessProbe"):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("what", REFUSED)
def test_values_that_are_wrong_are_refused_by_name(all_rendered, what):
    assert isinstance(all_rendered[what], str) and REFUSED[what][1] in all_rendered[what]


def test_every_value_has_a_schema_and_every_schema_a_value():
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values, schema, where):
        assert set(values) == set(schema["properties"]) - {"global"}, where
        for name, inner in schema["properties"].items():
            if "properties" in inner and set(inner["properties"]) != {"requests", "limits"}:
                compare(values[name], inner, f"{where}.{name}")

    compare(VALUES, schema, "values")


def test_settings_are_settings_of_the_server_and_numbers_stay_as_they_are_written(all_rendered):
    known = {f"SMN_{name}".upper() for name in Settings.model_fields}
    assert {*VALUES["settings"], *EVERYTHING["settings"]} <= known
    data = by_name(all_rendered["everything"])["ConfigMap", "smn-settings"]["data"]
    assert data == {name: str(value) for name, value in VALUES["settings"].items()} | {
        "SMN_CACHE_BYTES": "2147483648", "SMN_CROP_PCT": "0.875", "SMN_NO_CONSOLE": "true", "SMN_DTYPE": "bfloat16",
    }  # fmt: skip
    Settings(**{name.removeprefix("SMN_").lower(): value for name, value in data.items()})


def test_another_setting_starts_the_pods_anew(all_rendered):
    def checksum(name):
        pod = by_name(all_rendered[name])["Deployment", "smn"]["spec"]["template"]
        return pod["metadata"]["annotations"]["checksum/settings"]

    assert checksum("defaults") == checksum("plain") != checksum("everything")


def test_the_autoscaler_owns_the_number_of_replicas(all_rendered):
    everything = by_name(all_rendered["everything"])
    deployment = everything["Deployment", "smn"]
    scaler = everything["HorizontalPodAutoscaler", "smn"]["spec"]
    assert "replicas" not in deployment["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "smn"}
    assert (
        "cpu" in deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    )  # what it divides by
    assert (
        scaler["minReplicas"]
        > by_name(all_rendered["everything"])["PodDisruptionBudget", "smn"]["spec"]["minAvailable"]
    )


def test_prometheus_finds_every_replica_once_under_the_job_of_the_alerts(all_rendered):
    everything = by_name(all_rendered["everything"])
    monitor = everything["ServiceMonitor", "smn"]["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    (service,) = [
        one for one in everything.values() if one["kind"] == "Service" and wanted <= one["metadata"]["labels"].items()
    ]
    (endpoint,) = monitor["endpoints"]
    assert service["spec"]["clusterIP"] == "None" and endpoint["port"] == service["spec"]["ports"][0]["name"]
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": scraped["job_name"]}]
    assert endpoint["path"] == "/metrics"


def test_alerts_and_dashboard_are_the_files_of_the_plain_deployment(all_rendered):
    everything = by_name(all_rendered["everything"])
    assert everything["PrometheusRule", "smn"]["spec"] == yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    dashboard = everything["ConfigMap", "smn-dashboard"]["data"]["smn.json"]
    assert dashboard == (DEPLOY / "grafana/dashboards/smn.json").read_text()


def test_without_a_redis_of_its_own_it_asks_the_one_that_is_named(all_rendered):
    elsewhere = by_name(all_rendered["elsewhere"])
    assert not [key for key in elsewhere if "redis" in key[1]]
    (container,) = elsewhere["Deployment", "smn"]["spec"]["template"]["spec"]["containers"]
    env = {variable["name"]: variable for variable in container["env"]}
    assert env["SMN_REGISTRY"]["value"] == ELSEWHERE["registry"]["url"]
    assert env["REDIS_PASSWORD"]["valueFrom"]["secretKeyRef"]["optional"] is True
    assert {"ports": [{"port": 6380}]} in elsewhere["NetworkPolicy", "smn"]["spec"]["egress"]


def test_two_releases_live_in_one_namespace(all_rendered):
    one, other = by_name(all_rendered["everything"]), by_name(all_rendered["other"])
    assert not set(one) & set(other) and len(one) == len(other)
    for name, objects in (("smn", one), ("other", other)):
        labels = [o["spec"]["selector"]["matchLabels"]["app"] for o in objects.values() if o["kind"] == "StatefulSet"]
        assert labels == [f"{name}-redis"]
    assert '"app": "smn"' not in json.dumps(list(other.values()))


def test_policies_and_budget_can_be_left_out(all_rendered):
    assert not {"NetworkPolicy", "PodDisruptionBudget"} & {one["kind"] for one in all_rendered["nothing"]}


def test_helm_lint_has_nothing_to_say_but_that_there_is_no_icon():
    found = lint()
    assert found["errors"] == [] and [message["error"] for message in found["messages"]] == ["icon is recommended"]


def test_its_version_is_the_projects():
    import tomllib

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chart["version"] == chart["appVersion"] == version
