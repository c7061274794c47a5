"""deploy/kubernetes: every manifest agrees with the application, the image, the compose file and the others."""

import json
import re

import pytest
import yaml
from dockerfile import FINAL, ROOT, argument_of, copies, environment

from service.registry.follower import FOLLOW_TIMEOUT_S
from service.settings import Settings

DEPLOY = ROOT / "deploy"
FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
OBJECTS = [found for path in FILES for found in yaml.safe_load_all(path.read_text())]
SETTINGS = {f"SMN_{name}".upper() for name in Settings.model_fields}
SECRETS = {"admin", "api", "push", "redis"}
LAYOUT_OF_TRAINER = {"TRAIN_DATA", "TRAIN_RECIPE", "TRAIN_NAME", "TRAIN_OUT", "SMN_SERVER", "SMN_KEY"}


def objects(kind):
    return {found["metadata"]["name"]: found for found in OBJECTS if found["kind"] == kind}


WORKLOADS = objects("Deployment") | objects("StatefulSet") | objects("Job")


def pod(workload):
    return workload["spec"]["template"]["spec"]


def container(name):
    (found,) = pod(WORKLOADS[name])["containers"]
    return found


LABELS = [workload["spec"]["template"]["metadata"]["labels"] for workload in WORKLOADS.values()]


def every_container(test):
    return pytest.mark.parametrize("name", WORKLOADS)(test)


def test_the_kustomization_takes_every_manifest_but_those_applied_by_hand():
    listed = {DEPLOY / path for path in KUSTOMIZATION["resources"]}
    assert listed == set(FILES) - {DEPLOY / "kubernetes" / name for name in ("training.yaml", "ray.yaml")}


def test_every_file_of_a_config_map_is_there():
    for generator in KUSTOMIZATION["configMapGenerator"]:
        for path in [*generator.get("files", []), *generator.get("envs", [])]:
            assert (DEPLOY / path).is_file()


def test_no_two_objects_share_kind_and_name():
    assert len({(found["kind"], found["metadata"]["name"]) for found in OBJECTS}) == len(OBJECTS)


@every_container
def test_config_maps_secrets_and_claims_that_are_named_exist(name):
    workload, text = WORKLOADS[name], json.dumps(WORKLOADS[name])
    maps = {generator["name"] for generator in KUSTOMIZATION["configMapGenerator"]}
    assert set(re.findall(r'"configMap(?:Ref)?": \{"name": "([^"]+)"', text)) <= maps
    for reference in re.findall(r'"secretKeyRef": (\{[^}]+\})', text):
        found = json.loads(reference)
        assert found["name"] == "smn-keys" and found["key"] in SECRETS
    claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    assert set(re.findall(r'"claimName": "([^"]+)"', text)) <= set(objects("PersistentVolumeClaim"))
    mounts = {mount["name"] for mount in container(name)["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod(workload).get("volumes", [])} | claims


def test_the_secret_is_made_as_the_first_lines_say():
    told = (DEPLOY / "kustomization.yaml").read_text()
    assert set(re.findall(r"--from-literal=(\w+)=", told)) == SECRETS and "create secret generic smn-keys" in told


def test_variables_are_settings_of_the_server_or_of_the_trainer():
    shared = {line.partition("=")[0] for line in (DEPLOY / "kubernetes" / "settings.env").read_text().splitlines()}
    script = (DEPLOY / "training" / "train-and-push").read_text()
    assert shared <= SETTINGS
    assert {variable["name"] for variable in container("smn")["env"]} <= SETTINGS | {"REDIS_PASSWORD"}
    trainers = {variable["name"] for variable in container("smn-training")["env"]}
    assert trainers == LAYOUT_OF_TRAINER
    assert all(name in script for name in trainers - {"SMN_SERVER"})  # that one `smn` reads


def test_kubernetes_adds_no_variables_of_its_own_to_the_settings():
    """Of a service named smn it would set SMN_PORT=tcp://..."""
    assert pod(WORKLOADS["smn"])["enableServiceLinks"] is False
    assert pod(WORKLOADS["smn-training"])["enableServiceLinks"] is False


def test_the_server_listens_where_the_services_send():
    (port,) = container("smn")["ports"]
    assert str(port["containerPort"]) == environment(FINAL)["SMN_PORT"] == argument_of("EXPOSE")


@pytest.mark.parametrize("name", objects("Service"))
def test_a_service_selects_pods_and_names_a_port_of_theirs(name):
    spec = objects("Service")[name]["spec"]
    (chosen,) = [
        workload
        for workload in WORKLOADS.values()
        if spec["selector"].items() <= workload["spec"]["template"]["metadata"]["labels"].items()
    ]
    (ports,) = [container["ports"] for container in pod(chosen)["containers"]]
    known = {port["name"]: port["containerPort"] for port in ports}
    for port in spec["ports"]:
        assert port["port"] == known[port["targetPort"]]


def test_workloads_select_their_own_pods():
    for workload in (objects("Deployment") | objects("StatefulSet")).values():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"] == labels
    for found in objects("PodDisruptionBudget").values():
        assert found["spec"]["selector"]["matchLabels"] in LABELS


def test_addresses_name_services_and_their_ports():
    services = {name: found["spec"]["ports"][0]["port"] for name, found in objects("Service").items()}
    env = {variable["name"]: variable.get("value") for name in WORKLOADS for variable in container(name).get("env", [])}
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    for url in (env["SMN_REGISTRY"], env["SMN_SERVER"], source["datasources"][0]["url"]):
        host, port = re.fullmatch(r"\w+://(?::\$\(REDIS_PASSWORD\)@)?([\w-]+):(\d+)(?:/0)?", url).groups()
        assert services[host] == int(port)
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"]
    assert [(services[name], objects("Service")[name]["spec"]["clusterIP"]) for name in scraped[0]["names"]] == [
        (scraped[0]["port"], "None")
    ]
    for ingress in objects("Ingress").values():
        for path in ingress["spec"]["rules"][0]["http"]["paths"]:
            name = objects("Service")["smn"]["spec"]["ports"][0]["name"]
            assert path["backend"]["service"] == {"name": "smn", "port": {"name": name}}


def reached(egress):
    """[(labels of pods, or None for anywhere, ports)] of a policy's way out."""
    return [
        ([target["podSelector"]["matchLabels"] for target in rule["to"]] if "to" in rule else None,
         {port["port"] for port in rule.get("ports", [])})
        for rule in egress
    ]  # fmt: skip


def test_nobody_reaches_anybody_but_by_a_policy_of_its_own():
    policies = {name: found["spec"] for name, found in objects("NetworkPolicy").items()}
    assert policies.pop("nobody") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert policies.pop("names")["policyTypes"] == ["Egress"]
    ray = {"app": "smn-ray"}
    selected = [policy["podSelector"]["matchLabels"] for policy in policies.values()]
    assert sorted(map(str, selected)) == sorted(map(str, [*LABELS, ray]))
    assert [name for name, policy in policies.items() if {} in policy.get("ingress", [])] == []


def test_what_a_workload_needs_it_may_reach_and_that_lets_it_in():
    policies = {name: found["spec"] for name, found in objects("NetworkPolicy").items()}
    needs = [("smn", "redis", 6379), ("smn-ray", "redis", 6379), ("smn-training", "smn", 8000),
             ("prometheus", "smn", 8000), ("prometheus", "smn-ray", 8080), ("grafana", "prometheus", 9090)]  # fmt: skip
    for one, other, port in needs:
        assert any(labels and {"app": other} in labels and port in ports
                   for labels, ports in reached(policies[one]["egress"])), (one, other)  # fmt: skip
        assert any({"podSelector": {"matchLabels": {"app": one}}} in rule["from"] and {"port": port} in rule["ports"]
                   for rule in policies[other]["ingress"] if "ports" in rule), (one, other)  # fmt: skip
    for name in ("smn", "smn-ray", "smn-training"):  # timm's weights
        assert any(labels is None and 443 in ports for labels, ports in reached(policies[name]["egress"]))


def test_only_the_servers_reach_redis():
    policy = objects("NetworkPolicy")["redis"]["spec"]
    (rule,) = policy["ingress"]
    assert policy["podSelector"]["matchLabels"] == {"app": "redis"} and policy["policyTypes"] == ["Ingress"]
    servers = [{"podSelector": {"matchLabels": {"app": app}}} for app in ("smn", "smn-ray")]
    assert rule["from"] == servers
    assert rule["ports"] == [{"port": container("redis")["ports"][0]["containerPort"]}]


def test_probes_ask_routes_that_exist_on_ports_that_exist(client):
    routes = set(client.app.openapi()["paths"])
    probes = {key: probe["httpGet"] for key, probe in container("smn").items() if key.endswith("Probe")}
    assert {key: probe["path"] for key, probe in probes.items()} == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/livez",
    }
    assert {probe["path"] for probe in probes.values()} <= routes
    assert {probe["port"] for probe in probes.values()} == {port["name"] for port in container("smn")["ports"]}


def test_a_probe_waits_longer_than_the_server_waits_for_its_registry():
    """Else a registry that hangs would take every replica out of the balancer."""
    probes = [probe for key, probe in container("smn").items() if key.endswith("Probe")]
    assert all(probe["timeoutSeconds"] > FOLLOW_TIMEOUT_S for probe in probes)


def test_a_pod_has_more_time_to_end_than_its_pause_and_its_drain_take():
    """A drain, then as long again for connections that still write their answers."""
    drain_s = float({v["name"]: v.get("value") for v in container("smn")["env"]}["SMN_DRAIN_S"])
    pause, seconds = container("smn")["lifecycle"]["preStop"]["exec"]["command"]
    assert pause == "sleep"
    assert pod(WORKLOADS["smn"])["terminationGracePeriodSeconds"] > float(seconds) + 2 * drain_s


@every_container
def test_a_container_asks_for_resources_and_is_held_to_its_memory(name):
    resources = container(name)["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"]) and "memory" in resources["limits"]


@every_container
def test_a_container_is_an_ordinary_user_without_rights(name):
    user, rights = pod(WORKLOADS[name])["securityContext"], container(name)["securityContext"]
    assert user["runAsNonRoot"] and user["runAsUser"] > 0 and user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert rights["capabilities"] == {"drop": ["ALL"]} and rights["allowPrivilegeEscalation"] is False
    assert pod(WORKLOADS[name])["automountServiceAccountToken"] is False


@every_container
def test_its_own_files_are_read_only(name):
    assert container(name)["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_images_user_is_the_one_of_the_image():
    (user,) = [argument for kind, argument in FINAL if kind == "USER"]
    assert pod(WORKLOADS["smn"])["securityContext"]["runAsUser"] == int(user)
    assert pod(WORKLOADS["smn-training"])["securityContext"]["runAsUser"] == int(user)


def test_the_training_job_runs_the_script_of_the_image():
    (source,) = [s for sources, to in copies(FINAL) for s in sources if to == "/usr/local/bin/"]
    assert container("smn-training")["command"] == [source.rpartition("/")[2]]


def test_the_same_images_and_redis_options_as_in_the_compose_file():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("redis", "prometheus", "grafana"):
        assert container(name)["image"] == services[name]["image"]
    here = container("redis")["command"]
    there = [word.replace("${REDIS_MAXMEMORY:-2gb}", "2gb").replace("$$", "$") for word in services["redis"]["command"]]
    assert here == there and set(services["redis"]["environment"]) == {container("redis")["env"][0]["name"]}
    assert container("prometheus")["args"] == services["prometheus"]["command"]
    settings = {variable["name"]: variable["value"] for variable in container("grafana")["env"]}
    assert settings == services["grafana"]["environment"]


def test_the_ingress_does_what_the_proxy_of_the_compose_file_does():
    proxy = "".join((DEPLOY / "proxy" / name).read_text() for name in ("http.conf", "server.conf"))
    prefix = "nginx.ingress.kubernetes.io/proxy-"
    ingresses = objects("Ingress")
    for name, directive, unit in (
        ("body-size", "client_max_body_size", ""),
        ("connect-timeout", "proxy_connect_timeout", "s"),
        ("read-timeout", "proxy_read_timeout", "s"),
        ("next-upstream", "proxy_next_upstream", ""),
        ("next-upstream-tries", "proxy_next_upstream_tries", ""),
        ("next-upstream-timeout", "proxy_next_upstream_timeout", "s"),
    ):
        told = [found["metadata"]["annotations"].get(prefix + name) for found in ingresses.values()]
        assert told[0] and all(f"{directive} {value}{unit};" in proxy for value in told if value)
    for found in ingresses.values():
        told = found["metadata"]["annotations"]
        assert float(told[prefix + "read-timeout"]) * 1e3 > Settings.model_fields["timeout_ms"].default


def test_only_embedding_is_sent_again_by_the_ingress():
    again = {
        path["path"]: "non_idempotent"
        in found["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-next-upstream"]
        for found in objects("Ingress").values()
        for path in found["spec"]["rules"][0]["http"]["paths"]
    }
    assert again == {"/embed": True, "/v1/embeddings": True, "/": False}
