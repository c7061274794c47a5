"""deploy/kubernetes/ray.yaml: it agrees with the application, the image, the pins and the plain manifests."""

import importlib
import json
import re

import pytest
import yaml
from dockerfile import FINAL, ROOT, environment

from service.settings import Settings

schema = pytest.importorskip("ray.serve.schema", reason="the extra ray is not installed")

KUBERNETES = ROOT / "deploy" / "kubernetes"
TEXT = (KUBERNETES / "ray.yaml").read_text()
SERVICE = yaml.safe_load(TEXT)["spec"]
CONFIG = yaml.safe_load(SERVICE["serveConfigV2"])
(APPLICATION,) = CONFIG["applications"]
CLUSTER = SERVICE["rayClusterConfig"]
HEAD = CLUSTER["headGroupSpec"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]
every_group = pytest.mark.parametrize("group", [HEAD, WORKERS], ids=["head", "workers"])


def pod(group):
    return group["template"]["spec"]


def container(group):
    (found,) = pod(group)["containers"]
    return found


def settings():
    return Settings(**{"on": "ray", "admin_keys": "key", "registry": "redis://redis", **APPLICATION["args"]})


def test_ray_itself_takes_the_configuration():
    assert schema.ServeDeploySchema.model_validate(CONFIG).applications[0].name == "smn"


def test_what_it_imports_builds_an_application_from_settings_by_name():
    module, _, name = APPLICATION["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert set(APPLICATION["args"]) <= set(Settings.model_fields)
    assert all(isinstance(value, str) for value in APPLICATION["args"].values())
    assert settings().replicas == 2


def test_the_version_is_the_pinned_one():
    pins = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={CLUSTER['rayVersion']} \\\n" in pins


def test_the_image_is_built_with_the_extra():
    assert "--build-arg EXTRAS=service,otel,ray" in TEXT
    assert {container(group)["image"] for group in (HEAD, WORKERS)} == {"smn:ray"}


def test_a_worker_has_room_for_a_replica_and_there_may_be_as_many_workers_as_replicas():
    assert settings().replica_cpus <= float(container(WORKERS)["resources"]["limits"]["cpu"])
    assert (WORKERS["minReplicas"], WORKERS["maxReplicas"]) == (settings().replicas, settings().max_replicas)
    assert HEAD["rayStartParams"]["num-cpus"] == "0"


def test_ray_listens_where_the_plain_servers_do_and_every_pod_says_so():
    assert str(CONFIG["http_options"]["port"]) == environment(FINAL)["SMN_PORT"]
    for group in (HEAD, WORKERS):
        ports = {port["name"]: port["containerPort"] for port in container(group)["ports"]}
        assert ports["serve"] == CONFIG["http_options"]["port"]
        probes = [probe["httpGet"] for key, probe in container(group).items() if key.endswith("Probe")]
        assert len(probes) == 2 and {probe["port"] for probe in probes} <= set(ports)


def test_settings_secrets_and_claims_are_those_of_the_plain_servers():
    plain = list(yaml.safe_load_all((KUBERNETES / "smn.yaml").read_text()))
    (server,) = plain[0]["spec"]["template"]["spec"]["containers"]
    env, theirs = container(HEAD)["env"], {variable["name"]: variable for variable in server["env"]}
    assert container(HEAD)["envFrom"] == server["envFrom"]
    assert all(theirs[variable["name"]] == variable for variable in env)


@every_group
def test_its_pods_reach_redis(group):
    policy = next(
        found
        for found in yaml.safe_load_all((KUBERNETES / "network.yaml").read_text())
        if found["metadata"]["name"] == "redis"
    )
    allowed = [source["podSelector"]["matchLabels"] for source in policy["spec"]["ingress"][0]["from"]]
    assert group["template"]["metadata"]["labels"] in allowed


@every_group
def test_a_pod_is_the_images_ordinary_user_without_rights(group):
    (user,) = [argument for kind, argument in FINAL if kind == "USER"]
    rights = container(group)["securityContext"]
    assert pod(group)["securityContext"]["runAsNonRoot"] and pod(group)["securityContext"]["runAsUser"] == int(user)
    assert rights == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(group)["enableServiceLinks"] is False


def test_only_the_clusters_pods_and_kuberays_operator_reach_dashboard_client_and_control():
    """Each of the three runs what it is told."""
    policies = yaml.safe_load_all((KUBERNETES / "network.yaml").read_text())
    (policy,) = [found["spec"] for found in policies if found["metadata"]["name"] == "smn-ray"]
    labels = HEAD["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels == WORKERS["template"]["metadata"]["labels"]
    own, *others = policy["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": labels}}]}
    ports = {port["name"]: port["containerPort"] for group in (HEAD, WORKERS) for port in container(group)["ports"]}
    for rule in others:
        (source,), allowed = rule["from"], {port["port"] for port in rule["ports"]}
        operator = source.get("podSelector", {}).get("matchLabels") == {"app.kubernetes.io/name": "kuberay-operator"}
        assert allowed <= {ports["serve"], ports["metrics"]} | ({ports["dashboard"]} if operator else set())


@every_group
def test_every_volume_that_is_mounted_is_there(group):
    mounts = {mount["name"] for mount in container(group)["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod(group)["volumes"]}
    assert set(re.findall(r'"claimName"', json.dumps(group))) == set()


@every_group
def test_a_container_asks_for_resources_and_is_held_to_its_memory(group):
    resources = container(group)["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"]) and "memory" in resources["limits"]


def test_a_worker_has_more_time_to_end_than_its_pause_and_its_drain_take():
    pause, seconds = container(WORKERS)["lifecycle"]["preStop"]["exec"]["command"]
    assert pause == "sleep"
    assert pod(WORKERS)["terminationGracePeriodSeconds"] > float(seconds) + 2 * settings().drain_s
