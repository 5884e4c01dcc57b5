"""The documents that the chart renders, with the defaults and with each option."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.serve.pod.pod import ANSWERING
from chatmetrics.components.serve.release import read_release
from tests.helm.chart import CHART, EXAMPLES, NAMES, environment, helm, needs_helm, refusal, render, template

pytestmark = needs_helm

COMMAND = ["python3", "-m", "chatmetrics.components.serve"]
RELEASE = "/etc/chatmetrics/release.json"
SHA256 = "0123456789abcdef" * 4
MANIFEST_KEY = f"MCowBQYDK2VwAyEA{'A' * 43}="  # the form of every public Ed25519 key


def test_the_defaults_render_only_what_serving_needs() -> None:
    kinds = sorted((d["kind"], d["metadata"]["name"]) for d in render().documents)
    assert kinds == [
        ("Deployment", "hotel"),
        ("Job", "hotel-smoke"),
        ("NetworkPolicy", "hotel"),
        ("NetworkPolicy", "hotel-smoke"),
        ("PersistentVolumeClaim", "hotel-models"),
        ("Pod", "hotel-test"),
        ("PodDisruptionBudget", "hotel"),
        ("Secret", "hotel-tokens"),
        ("Service", "hotel"),
        ("ServiceAccount", "hotel"),
        ("ServiceAccount", "hotel-clients"),
    ]


@pytest.mark.parametrize("example", ["hotel", "gpu"])
def test_helm_lint_reports_nothing(example: str) -> None:
    done = helm("lint", "--strict", str(CHART), f"--values={EXAMPLES / example}.yaml")
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("example", NAMES)
def test_no_two_resources_have_the_same_name(example: str) -> None:
    names = [(d["kind"], d["metadata"]["name"]) for d in render(example).documents]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("example", "deployment"), [("hotel", "hotel"), ("gpu", "hotel"), ("everything", "hotel-canary")]
)
def test_the_containers_read_the_release_that_is_rendered(example: str, deployment: str, tmp_path: Path) -> None:
    file = tmp_path / "release.json"
    file.write_text(json.dumps(render(example).release(deployment)), "utf-8")
    release = read_release(file)
    assert [model.name for model in release.models] == [
        m["name"] for m in render(example).release(deployment)["models"]
    ]
    assert str(release.tokens) == "/etc/chatmetrics-tokens"


def test_every_field_of_the_release_comes_from_a_value(tmp_path: Path) -> None:
    sets = (
        f'models=[{{"name": "hotel", "uri": "s3://b/hotel/3", "sha256": "{SHA256}"}}, '
        '{"name": "bank", "uri": "s3://b/bank/1", "threshold": 0}]',
        f'manifestKey="{MANIFEST_KEY}"',
        "acceptanceTest.threshold=0.75",
        'auth={"enabled": false, "databases": {"shop": ["hotel"]}}',
        'requestLog.level="questions"',
        'limits={"requestKib": 2, "requestSeconds": 30, "rate": "5/second", "queue": 4}',
        'query={"seconds": 2, "memoryMib": 64, "parallel": 3, "maxRows": 10}',
        "storage.keepVersions=4",
        "ollama.concurrency=3",
        "rollout.drainSeconds=9",
        'cors.origins=["https://chat.example.com"]',
        'ask.databases=[{"name": "hotel", "existingClaim": "business", "file": "sqlite/hotel.sqlite"}]',
        "ask.questionCharacters=900",
    )
    assert render("hotel", *sets).release() == {
        "models": [
            {"name": "hotel", "uri": "s3://b/hotel/3", "sha256": SHA256, "threshold": 0.75},
            {"name": "bank", "uri": "s3://b/bank/1", "sha256": "", "threshold": 0},
        ],
        "manifestKey": MANIFEST_KEY,
        "store": "/models",
        "keepVersions": 4,
        "concurrency": 3,
        "requestKib": 2,
        "requestSeconds": 30,
        "rate": "5/second",
        "queue": 4,
        "drainSeconds": 9,
        "clientDatabases": {"shop": ["hotel"]},
        "requestLog": "questions",
        "origins": ["https://chat.example.com"],
        "tokens": None,
        "databases": {"hotel": "/databases/hotel/sqlite/hotel.sqlite"},
        "bindNames": True,
        "questionCharacters": 900,
        "query": {"seconds": 2, "memoryMib": 64, "parallel": 3, "maxRows": 10},
    }


def test_pods_are_annotated_with_the_manifests_that_they_serve() -> None:
    hotel = f'{{"name": "hotel", "uri": "s3://b/hotel/3", "sha256": "{SHA256}"}}'
    models = f'models=[{hotel}, {{"name": "b", "uri": "s3://b/b/1"}}]'
    deployment = render("hotel", models).one("Deployment", "hotel")
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert json.loads(annotations["chatmetrics/manifests"]) == {"hotel": SHA256, "b": ""}


def test_a_threshold_can_be_set_on_the_command_line() -> None:
    done = helm(
        "template", "hotel", str(CHART), f"--values={EXAMPLES / 'hotel.yaml'}", "--set=acceptanceTest.threshold=0.8"
    )
    assert r"\"threshold\":0.8" in done.stdout, done.stderr


@pytest.mark.parametrize(("container", "verb"), [("fetch", "fetch"), ("proxy", "proxy")])
def test_the_containers_commands_exist_in_the_code(container: str, verb: str) -> None:
    command = render().container(container)["command"]
    assert command == [*COMMAND, verb, RELEASE]
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert f"error: {RELEASE}: cannot be read" in done.stderr


def test_the_pods_read_the_release_from_their_annotation() -> None:
    pod = render().pod()
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "release")
    (item,) = volume["downwardAPI"]["items"]
    assert item == {
        "path": "release.json",
        "fieldRef": {"fieldPath": "metadata.annotations['chatmetrics/release.json']"},
    }
    for container in ("fetch", "proxy"):
        assert {"name": "release", "mountPath": "/etc/chatmetrics", "readOnly": True} in (
            render().container(container)["volumeMounts"]
        )


def test_ollama_s_unsafe_defaults_are_overridden() -> None:
    variables = environment(render("gpu", "ollama.concurrency=2").container("ollama"))
    assert variables == {
        "OLLAMA_HOST": "127.0.0.1:11434",
        "HOME": "/ollama",
        "OLLAMA_MODELS": "/ollama/models",
        "OLLAMA_GO_TEMPLATE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NUM_PARALLEL": "2",
        "OLLAMA_MAX_LOADED_MODELS": "2",
        "GIN_MODE": "release",
    }


def test_threads_and_memory_come_from_ollama_s_limits() -> None:
    def source(container: str, name: str) -> Any:
        return json.loads(environment(render().container(container))[name])["resourceFieldRef"]

    assert source("proxy", "CHATMETRICS_THREADS") == {
        "containerName": "ollama",
        "resource": "limits.cpu",
        "divisor": "1",
    }
    assert source("fetch", "CHATMETRICS_MEMORY_LIMIT") == {"containerName": "ollama", "resource": "limits.memory"}


def test_surge_starts_the_new_pod_first_and_gap_stops_the_old_one_first() -> None:
    def strategy(value: str) -> Any:
        return render("hotel", f'rollout.strategy="{value}"').one("Deployment")["spec"]["strategy"]["rollingUpdate"]

    assert strategy("surge") == {"maxSurge": 1, "maxUnavailable": 0}
    assert strategy("gap") == {"maxSurge": 0, "maxUnavailable": 1}


def test_a_terminating_pod_has_time_for_its_longest_request() -> None:
    rendered = render("hotel", "limits.requestSeconds=300", "rollout.drainSeconds=20")
    assert rendered.pod()["terminationGracePeriodSeconds"] == 300 + 20 + 15
    waiting = rendered.container("ollama")["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert f"/state/{ANSWERING}" in waiting  # the file that the proxy creates while it answers


def test_startup_probe_and_deadline_follow_startup_seconds() -> None:
    rendered = render("hotel", "rollout.startupSeconds=61", "rollout.minReadySeconds=7")
    probe = rendered.container("proxy")["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 61
    spec = rendered.one("Deployment")["spec"]
    assert spec["minReadySeconds"] == 7
    assert spec["progressDeadlineSeconds"] > 61 + 7


def test_startup_readiness_and_liveness_differ() -> None:
    proxy = render().container("proxy")
    paths = [proxy[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert paths == ["/health/started", "/health/ready", "/health/live"]
    assert {proxy[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe")} == {"management"}
    ollama = render().container("ollama")
    assert ollama["startupProbe"]["exec"]["command"] == ["ollama", "ls"]
    assert ollama["livenessProbe"]["exec"]["command"][-1] == "[ ! -e /state/stuck ]"
    assert "readinessProbe" not in ollama


def test_a_digest_takes_precedence_over_a_tag() -> None:
    digest = "sha256:" + "a" * 64
    rendered = render("hotel", 'image.tag="1"', f'image.digest="{digest}"', f'ollama.image.digest="{digest}"')
    assert rendered.container("proxy")["image"] == f"chatmetrics/serve@{digest}"
    assert rendered.container("ollama")["image"] == f"docker.io/ollama/ollama@{digest}"
    assert render("hotel", 'image.tag="1"').container("fetch")["image"] == "chatmetrics/serve:1"


def test_images_of_other_projects_are_named_by_digest_unless_another_tag_is_given() -> None:
    pinned = re.compile(r"docker\.io/[a-z/]+:[\d.]+@sha256:[0-9a-f]{64}")
    assert pinned.fullmatch(render().container("ollama")["image"])
    rendered = render("hotel", "anythingllm.enabled=true")
    assert pinned.fullmatch(rendered.container("anythingllm", "hotel-anythingllm")["image"])
    assert render("hotel", 'ollama.image.tag="0.35.1"').container("ollama")["image"] == "docker.io/ollama/ollama:0.35.1"


def test_a_gpu_pool_selects_its_nodes() -> None:
    pod, ollama = render("gpu").pod(), render("gpu").container("ollama")
    assert pod["nodeSelector"] == {"accelerator": "nvidia-a100"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert ollama["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nodeSelector" not in render().pod()
    assert set(render().container("ollama")["resources"]["limits"]) == {"cpu", "memory"}


def test_gpus_of_another_vendor_and_other_node_labels() -> None:
    rendered = render(
        "gpu",
        'gpu={"enabled": true, "resource": "amd.com/gpu", "count": 2, "pool": "MI300X", "pools": {"MI300X": "mi300x"},'
        ' "nodeLabel": "cloud.example.com/gpu", "runtimeClassName": "amd", "tolerations": []}',
    )
    assert rendered.pod()["nodeSelector"] == {"cloud.example.com/gpu": "mi300x"}
    assert rendered.container("ollama")["resources"]["limits"]["amd.com/gpu"] == "2"
    assert rendered.pod()["runtimeClassName"] == "amd"


def models_volume(*sets: str) -> Any:
    (volume,) = (volume for volume in render("hotel", *sets).pod()["volumes"] if volume["name"] == "models")
    return volume


def test_models_are_stored_on_each_kind_of_volume() -> None:
    assert models_volume()["persistentVolumeClaim"] == {"claimName": "hotel-models"}
    assert models_volume('storage.existingClaim="mine"')["persistentVolumeClaim"] == {"claimName": "mine"}
    assert models_volume('storage.kind="emptyDir"', 'storage.size="3Gi"')["emptyDir"] == {"sizeLimit": "3Gi"}
    host = models_volume('storage.kind="hostPath"', 'storage.path="/var/models"')["hostPath"]
    assert host == {"path": "/var/models", "type": "DirectoryOrCreate"}
    for sets in (('storage.kind="emptyDir"',), ('storage.existingClaim="mine"',)):
        assert not render("hotel", *sets).has("PersistentVolumeClaim", "hotel-models")


def test_the_claim_is_kept_at_uninstallation_if_retain_is_set() -> None:
    assert render().one("PersistentVolumeClaim", "hotel-models")["metadata"]["annotations"] == {
        "helm.sh/resource-policy": "keep"
    }
    assert (
        "annotations"
        not in render("hotel", "storage.retain=false").one("PersistentVolumeClaim", "hotel-models")["metadata"]
    )


def test_pods_with_a_read_write_once_claim_prefer_one_node() -> None:
    assert "podAffinity" in render().pod()["affinity"]
    spread = render("hotel", 'storage.accessModes=["ReadWriteMany"]').pod()
    assert spread["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"
    assert "affinity" not in spread
    own = render("hotel", 'affinity={"nodeAffinity": {}}').pod()
    assert own["affinity"] == {"nodeAffinity": {}}


def test_the_service_reaches_only_the_public_port() -> None:
    service = render("hotel", 'service={"type": "NodePort", "port": 8000}').one("Service")
    assert service["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": "http", "appProtocol": "http"}]
    assert service["spec"]["type"] == "NodePort"


def test_a_canary_gets_a_share_of_the_gateway_s_requests() -> None:
    rendered = render("everything")
    (rule,) = rendered.one("HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"] == [
        {"name": "hotel", "port": 80, "weight": 80},
        {"name": "hotel-canary", "port": 80, "weight": 20},
    ]
    assert rule["timeouts"] == {"request": "130s"}
    assert rendered.one("HTTPRoute")["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    assert rendered.release("hotel")["models"][0]["uri"] == "file:///published/hotel/3"
    assert rendered.release("hotel-canary")["models"][0]["uri"] == "s3://models/hotel/4"


def test_the_services_of_the_tracks_select_different_pods() -> None:
    rendered = render("everything")
    for name, track in (("hotel", "stable"), ("hotel-canary", "canary")):
        selector = rendered.one("Service", name)["spec"]["selector"]
        labels = rendered.one("Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert selector["track"] == track
        assert selector.items() <= labels.items()


def test_a_gateway_without_a_canary_routes_to_the_only_service() -> None:
    (rule,) = render("everything", "canary.enabled=false").one("HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "hotel", "port": 80}]


@pytest.mark.parametrize(
    ("switch", "api", "documents"),
    [
        ("gateway", "gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("metrics.serviceMonitor", "monitoring.coreos.com/v1", "ServiceMonitor"),
    ],
)
def test_an_api_that_the_cluster_lacks_is_named(switch: str, api: str, documents: str) -> None:
    assert render("everything").has(documents)
    assert not render("everything", f"{switch}.enabled=false", "canary.enabled=false").has(documents)
    error = refusal("everything", apis=tuple({"gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1"} - {api}))
    assert f"{switch}.enabled=true, but this cluster has no {api}" in error
    assert f"--api-versions {api}" in error


def test_with_an_autoscaler_the_deployment_has_no_replicas() -> None:
    assert render().one("Deployment")["spec"]["replicas"] == 1
    scaled = render("hotel", 'autoscaling={"enabled": true, "minReplicas": 2, "maxReplicas": 5, "target": 70}')
    assert "replicas" not in scaled.one("Deployment")["spec"]
    spec = scaled.one("HorizontalPodAutoscaler")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 5)
    assert spec["metrics"] == [
        {
            "type": "ContainerResource",
            "containerResource": {
                "container": "ollama",
                "name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 70},
            },
        }
    ]


def test_the_autoscaler_can_use_the_queue() -> None:
    rendered = render("everything")
    assert rendered.one("HorizontalPodAutoscaler")["spec"]["metrics"] == [
        {
            "type": "Pods",
            "pods": {
                "metric": {"name": "chatmetrics_queue_length"},
                "target": {"type": "AverageValue", "averageValue": "8"},
            },
        }
    ]
    assert "replicas" not in rendered.one("Deployment")["spec"]
    assert rendered.one("Deployment", "hotel-canary")["spec"]["replicas"] == 1


def test_a_drain_evicts_one_pod_at_a_time_and_failed_pods_do_not_block_it() -> None:
    spec = render("hotel", "podDisruptionBudget.maxUnavailable=2").one("PodDisruptionBudget")["spec"]
    assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (2, "AlwaysAllow")
    assert not render("hotel", "podDisruptionBudget.enabled=false").has("PodDisruptionBudget")


def test_prometheus_finds_the_management_port_of_both_tracks() -> None:
    rendered = render("everything")
    monitor, service = rendered.one("ServiceMonitor"), rendered.one("Service", "hotel-metrics")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"] == [{"port": "management", "path": "/metrics", "interval": "30s"}]
    assert service["spec"]["ports"] == [{"name": "management", "port": 8081, "targetPort": "management"}]
    for deployment in ("hotel", "hotel-canary"):
        labels = rendered.one("Deployment", deployment)["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()


def test_the_smoke_test_queries_every_track_through_its_service() -> None:
    rendered = render("everything")
    for pod in (rendered.pods()["Job/hotel-smoke"], rendered.pods()["Pod/hotel-test"]):
        commands = {container["name"]: container["command"] for container in pod["containers"]}
        assert commands == {
            "stable": [*COMMAND, "smoke", "http://hotel:80"],
            "canary": [*COMMAND, "smoke", "http://hotel-canary:80"],
        }
    annotations = rendered.one("Job", "hotel-smoke")["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "post-install,post-upgrade"
    assert rendered.one("Pod", "hotel-test")["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_a_wrong_answer_to_the_smoke_test_is_final() -> None:
    (rule,) = render().one("Job", "hotel-smoke")["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [4])


def test_without_tests_there_is_no_hook_and_no_token_for_it() -> None:
    rendered = render("hotel", "smokeTest.enabled=false")
    assert not rendered.has("Job", "hotel-smoke")
    assert not rendered.has("Pod", "hotel-test")
    assert set(rendered.one("Secret", "hotel-tokens")["data"]) == {"default"}


def test_every_client_has_its_own_token() -> None:
    secret = render("everything", 'auth.clients=["shop", "finance"]').one("Secret", "hotel-tokens")
    assert set(secret["data"]) == {"shop", "finance", "smoke", "anythingllm"}
    assert len(set(secret["data"].values())) == 4


def test_tokens_are_a_hook_so_that_no_rollback_restores_an_old_one() -> None:
    assert (
        render().one("Secret", "hotel-tokens")["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    )


def test_tokens_from_an_existing_secret_and_no_tokens() -> None:
    rendered = render("hotel", 'auth.existingSecret="mine"')
    assert not rendered.has("Secret", "hotel-tokens")
    (volume,) = (volume for volume in rendered.pod()["volumes"] if volume["name"] == "tokens")
    assert volume["secret"]["secretName"] == "mine"
    open_to_all = render("hotel", "auth.enabled=false")
    assert not open_to_all.has("Secret", "hotel-tokens")
    assert "tokens" not in {volume["name"] for volume in open_to_all.pod()["volumes"]}
    assert "env" not in open_to_all.pods()["Job/hotel-smoke"]["containers"][0]


def test_anythingllm_is_configured_as_its_documentation_says() -> None:
    rendered = render("everything")
    variables = environment(rendered.container("anythingllm", "hotel-anythingllm"))
    key = json.loads(variables.pop("GENERIC_OPEN_AI_API_KEY"))
    assert key == {"secretKeyRef": {"name": "hotel-tokens", "key": "anythingllm"}}
    assert variables == {
        "STORAGE_DIR": "/app/server/storage",
        "LLM_PROVIDER": "generic-openai",
        "GENERIC_OPEN_AI_BASE_PATH": "http://hotel:80/v1",
        "GENERIC_OPEN_AI_MODEL_PREF": "hotel",
        "GENERIC_OPEN_AI_MODEL_TOKEN_LIMIT": "512",
        "DISABLE_TELEMETRY": "true",
    }
    claim = rendered.one("PersistentVolumeClaim", "hotel-anythingllm")
    (volume,) = rendered.pod("hotel-anythingllm")["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    selector = rendered.one("Service", "hotel-anythingllm")["spec"]["selector"]
    labels = rendered.one("Deployment", "hotel-anythingllm")["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()


def test_anythingllm_is_disabled_by_default() -> None:
    assert not [d for d in render().documents if "anythingllm" in d["metadata"]["name"]]


def test_several_models_share_a_pod() -> None:
    models = render("gpu").release()["models"]
    assert models == [
        {"name": "hotel", "uri": "s3://models/hotel/3", "sha256": "", "threshold": None},
        {"name": "bank", "uri": "s3://models/bank/1a2b3c4d5e6f/manifest.json", "sha256": "", "threshold": 0.8},
    ]


def test_models_and_databases_on_a_volume_are_mounted_read_only() -> None:
    rendered = render("everything")
    mount = {"name": "published", "mountPath": "/published", "readOnly": True}
    for container in ("fetch", "proxy"):
        assert mount in rendered.container(container)["volumeMounts"]
    assert {"name": "database-hotel", "mountPath": "/databases/hotel", "readOnly": True} in (
        rendered.container("proxy")["volumeMounts"]
    )
    assert rendered.release()["databases"] == {
        "hotel": "/databases/hotel/hotel.sqlite",
        "bank_2024": "/published/databases/bank_2024.sqlite",
    }


def test_a_database_on_a_server_is_an_address_with_the_password_in_a_secret() -> None:
    address = "postgresql+psycopg://reader@db.example/hotel"
    databases = f'ask.databases=[{{"name": "hotel", "address": "{address}"}}]'
    rendered = render("hotel", databases, 'ask.passwordSecret="warehouse"', 'ask.passwordKey="reader"')
    assert rendered.release()["databases"] == {"hotel": address}
    variables = environment(rendered.container("proxy"))
    reference = {"secretKeyRef": {"name": "warehouse", "key": "reader"}}
    assert json.loads(variables["PGPASSWORD"]) == json.loads(variables["MYSQL_PWD"]) == reference
    assert "PGPASSWORD" not in environment(rendered.container("fetch"))
    assert "PGPASSWORD" not in environment(render("hotel", databases).container("proxy"))


@pytest.mark.parametrize("example", NAMES)
def test_every_volume_is_mounted_and_every_mount_has_a_volume(example: str) -> None:
    for pod in render(example).pods().values():
        containers = pod.get("initContainers", []) + pod["containers"]
        mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_notes_have_the_address_and_the_command_for_a_token() -> None:
    done = helm(
        "install", "hotel", str(CHART), "--dry-run=client", f"--values={EXAMPLES / 'hotel.yaml'}", "-n", "serving"
    )
    assert "http://hotel.serving:80" in done.stdout, done.stderr
    assert "kubectl get secret -n serving hotel-tokens -o jsonpath='{.data.default}'" in done.stdout


def test_values_that_are_not_needed_are_not_required() -> None:
    done = template("", 'models=[{"name": "hotel", "uri": "s3://models/hotel/3"}]', 's3.endpoint="http://minio"')
    assert done.returncode == 0, done.stderr
