"""Every value is in the schema, is used, and has a description; the error for a wrong value names it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatmetrics.pipelines.pools import load_pools
from tests.helm.chart import CHART, needs_helm, refusal, render

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
TABLE = CHART.parent / "values_table.py"

WRONG_TYPES_AND_FORMS = [
    ('models="hotel"', "/models", "want array"),
    ('models=[{"name": "hotel"}]', "/models/0", "'uri'"),
    ('models=[{"name": "Hotel", "uri": "s3://b/hotel/3"}]', "/models/0/name", "'Hotel'"),
    ('models=[{"name": "hotel", "uri": "https://b/hotel/3"}]', "/models/0/uri", "https://b/hotel/3"),
    ('models=[{"name": "hotel", "uri": "s3://b/hotel/3", "treshold": 1}]', "/models/0", "'treshold'"),
    ('modles=[{"name": "hotel", "uri": "s3://b/hotel/3"}]', "", "'modles'"),
    ('image.digest="sha256:abc"', "/image/digest", "'sha256:abc'"),
    ('manifestKey="-----BEGIN PUBLIC KEY-----"', "/manifestKey", "pattern"),
    ("s3.minKibPerSecond=0", "/s3/minKibPerSecond", "minimum"),
    ('image.tag="a b"', "/image/tag", "'a b'"),
    ('image.pullPolicy="Sometimes"', "/image/pullPolicy", "'IfNotPresent'"),
    ("ollama.concurrency=0", "/ollama/concurrency", "minimum"),
    ('ollama.resources.limits.memory="8 GB"', "/ollama/resources/limits/memory", "'8 GB'"),
    ("ollama.resources.limit.memory=8", "/ollama/resources", "'limit'"),
    ('gpu.enabled="yes"', "/gpu/enabled", "want boolean"),
    ("gpu.count=0.5", "/gpu/count", "want integer"),
    ('storage.kind="nfs"', "/storage/kind", "'persistentVolumeClaim'"),
    ('storage.size="40 Gi"', "/storage/size", "'40 Gi'"),
    ("storage.keepVersions=1", "/storage/keepVersions", "minimum"),
    ('storage.accessModes=["RWX"]', "/storage/accessModes/0", "'ReadWriteMany'"),
    ('s3.endpoint="minio:9000"', "/s3/endpoint", "'minio:9000'"),
    ('s3.endpoint="http://key:secret@minio"', "/s3/endpoint", "pattern"),
    ('auth.clients=["a/b"]', "/auth/clients/0", "'a/b'"),
    ('limits.requestSeconds="two minutes"', "/limits/requestSeconds", "want integer"),
    ('limits.rate="600"', "/limits/rate", "'600'"),
    ("limits.queue=-1", "/limits/queue", "minimum"),
    ('rollout.strategy="Recreate"', "/rollout/strategy", "'gap'"),
    ("acceptanceTest.threshold=80", "/acceptanceTest/threshold", "maximum"),
    ('ask.databases=[{"name": "hotel", "existingClaim": "c", "file": "../etc"}]', "/ask/databases/0/file", "'../etc'"),
    ('ask.databases=[{"name": "hotel", "address": "postgresql://u:p@h/d"}]', "/ask/databases/0/address", "pattern"),
    ('ask.databases=[{"name": "hotel", "address": "duckdb://d.duckdb"}]', "/ask/databases/0/address", "pattern"),
    (
        'ask.databases=[{"name": "hotel", "address": "duckdb:////d.duckdb?access_mode=automatic"}]',
        "/ask/databases/0/address",
        "pattern",
    ),
    ("canary.weight=101", "/canary/weight", "maximum"),
    ("service.port=80000", "/service/port", "maximum"),
    ("podDisruptionBudget.maxUnavailable=-1", "/podDisruptionBudget/maxUnavailable", "minimum"),
    ('autoscaling.metric="memory"', "/autoscaling/metric", "'queue'"),
    ('networkPolicy.from=[{"pods": {}}]', "/networkPolicy/from/0", "'pods'"),
    ('tolerations=[{"effect": "Never"}]', "/tolerations/0/effect", "'NoSchedule'"),
    ("podAnnotations.team=7", "/podAnnotations/team", "want string"),
    ('extraVolumes=[{"name": "models", "emptyDir": {}}]', "/extraVolumes/0/name", "not"),
]

RULES_BETWEEN_VALUES = [
    ("hotel", ("models=[]",), "models is empty: name at least one"),
    (
        "hotel",
        ('models=[{"name": "a", "uri": "s3://b/a/1"}, {"name": "a", "uri": "s3://b/a/2"}]',),
        'models: two models are named "a"',
    ),
    ("hotel", ('models=[{"name": "a", "uri": "file:///data/a/1"}]',), "models: file:///data/a/1 is not on a mounted"),
    ("everything", ("canary.models=[]",), "canary.models is empty: name at least one"),
    (
        "hotel",
        ('canary={"enabled": true, "models": [{"name": "a", "uri": "s3://b/a/1"}]}',),
        "set gateway.enabled=true",
    ),
    ("everything", ('gateway.name=""',), "gateway.name is empty: name the Gateway"),
    ("hotel", ('gpu.pool="A100"',), "gpu.pool=A100 without a GPU: set gpu.enabled=true"),
    ("gpu", ('gpu.pool="H100"',), "gpu.pool=H100 is unknown: use one of 4090, A100, A100-80G, V100"),
    ("hotel", ('storage.kind="hostPath"',), 'storage.path="" with storage.kind=hostPath'),
    ("hotel", ('storage.path="/models"',), 'storage.path="/models" with storage.kind=persistentVolumeClaim'),
    ("hotel", ('storage={"kind": "emptyDir", "existingClaim": "mine"}',), "storage.existingClaim=mine with"),
    (
        "hotel",
        ('autoscaling={"enabled": true, "minReplicas": 4}',),
        "autoscaling.minReplicas=4 is greater than autoscaling.maxReplicas=3",
    ),
    (
        "hotel",
        ("autoscaling.enabled=true", 'ollama.resources={"requests": null}'),
        "autoscaling.metric=cpu is a percentage of ollama.resources.requests.cpu",
    ),
    (
        "hotel",
        ('ollama.extraEnv=[{"name": "OLLAMA_HOST", "value": "0.0.0.0"}]',),
        "ollama.extraEnv: OLLAMA_HOST is set by the chart",
    ),
    (
        "hotel",
        ('podAnnotations={"chatmetrics/release.json": "{}"}',),
        "podAnnotations: chatmetrics/release.json is set by the chart",
    ),
    (
        "everything",
        ("networkPolicy.monitoring=[]",),
        "networkPolicy.monitoring is empty: add the peers that read metrics",
    ),
    ("hotel", ('auth.databases={"smoke": []}',), "auth.databases: smoke: this client runs the smoke test"),
    ("hotel", ("query.seconds=120",), "query.seconds=120 leaves the model no time"),
    *(
        (
            "everything",
            (
                f'proxy={{"resources": {{"limits": {{"memory": "{memory}"}}}}}}',
                "query.parallel=3",
                "query.memoryMib=600",
            ),
            f"proxy.resources.limits.memory={memory} is less than 256 MiB and query.parallel=3 times "
            "query.memoryMib=600: raise it to 2056Mi",
        )
        for memory in ("2Gi", "2055Mi", "2.1G", "2000000000", "1.9Gi")
    ),
    ("hotel", ("serviceAccount.create=false",), "serviceAccount.name is empty"),
    (
        "hotel",
        ('ask.databases=[{"name": "hotel"}]',),
        "ask.databases: hotel: name either path, or existingClaim and file",
    ),
    (
        "hotel",
        ('ask.databases=[{"name": "hotel", "path": "/data/hotel.sqlite", "address": "mysql://h/hotel"}]',),
        "ask.databases: hotel: name either path, or existingClaim and file, or address",
    ),
    (
        "hotel",
        ('ask.databases=[{"name": "hotel", "path": "/data/hotel.sqlite"}]',),
        "ask.databases: hotel: /data/hotel.sqlite is not on a mounted volume",
    ),
    (
        "hotel",
        ('ask.databases=[{"name": "hotel", "existingClaim": "c", "file": "inn.sqlite"}]',),
        "ask.databases: hotel: its file is named inn.sqlite; give both the same name",
    ),
    (
        "hotel",
        (
            'ask.databases=[{"name": "a-b", "existingClaim": "c", "file": "a-b.db"},'
            ' {"name": "a_b", "existingClaim": "c", "file": "a_b.db"}]',
        ),
        "ask.databases: a_b: another database has the same name apart from '-' and '_'",
    ),
]

# Every value, with an example in which it is used and a content that differs from the example's.
GPU = "gpu"
ALL = "everything"
OTHER_CONTENTS: dict[str, tuple[str, Any]] = {
    "models": ("hotel", [{"name": "bank", "uri": "s3://models/bank/1"}]),
    "manifestKey": ("hotel", f"MCowBQYDK2VwAyEA{'A' * 43}="),
    "image.repository": ("hotel", "mirror.example.com/serve"),
    "image.tag": ("hotel", "x"),
    "image.digest": ("hotel", "sha256:" + "0" * 64),
    "image.pullPolicy": ("hotel", "Always"),
    "imagePullSecrets": ("hotel", [{"name": "registry"}]),
    "ollama.image.repository": ("hotel", "mirror.example.com/ollama"),
    "ollama.image.tag": ("hotel", "0.34.4"),
    "ollama.image.digest": ("hotel", "sha256:" + "0" * 64),
    "ollama.image.pullPolicy": ("hotel", "Never"),
    "ollama.concurrency": ("hotel", 4),
    "ollama.resources": ("hotel", {"limits": {"memory": "1Gi"}}),
    "ollama.extraEnv": ("hotel", [{"name": "OLLAMA_FLASH_ATTENTION", "value": "1"}]),
    "fetch.resources": ("hotel", {"limits": {"memory": "2Gi"}}),
    "proxy.resources": ("hotel", {"limits": {"memory": "2Gi"}}),
    "gpu.enabled": (GPU, False),
    "gpu.resource": (GPU, "amd.com/gpu"),
    "gpu.count": (GPU, 2),
    "gpu.pool": (GPU, "V100"),
    "gpu.pools": (GPU, {"A100": "another"}),
    "gpu.nodeLabel": (GPU, "cloud.example.com/gpu"),
    "gpu.tolerations": (GPU, []),
    "gpu.runtimeClassName": (GPU, "nvidia"),
    "storage.kind": ("hotel", "emptyDir"),
    "storage.size": ("hotel", "1Gi"),
    "storage.storageClass": ("hotel", "fast"),
    "storage.accessModes": ("hotel", ["ReadWriteMany"]),
    "storage.existingClaim": ("hotel", "mine"),
    "storage.path": ("hotel", "/elsewhere"),
    "storage.keepVersions": ("hotel", 5),
    "storage.retain": ("hotel", False),
    "s3.endpoint": ("hotel", "https://s3.storage"),
    "s3.region": ("hotel", "eu-central-1"),
    "s3.addressing": ("hotel", "virtual"),
    "s3.minKibPerSecond": ("hotel", 64),
    "s3.caConfigMap": ("hotel", "company-ca"),
    "s3.existingSecret": ("hotel", ""),
    "s3.accessKeyKey": ("hotel", "user"),
    "s3.secretKeyKey": ("hotel", "password"),
    "auth.enabled": ("hotel", False),
    "auth.existingSecret": ("hotel", "mine"),
    "auth.clients": ("hotel", ["shop"]),
    "auth.databases": ("hotel", {"shop": ["hotel"]}),
    "limits.requestKib": ("hotel", 1),
    "limits.requestSeconds": ("hotel", 60),
    "limits.rate": ("hotel", ""),
    "limits.queue": ("hotel", 1),
    "requestLog.level": ("hotel", "none"),
    "cors.origins": ("hotel", ["https://chat.example.com"]),
    "rollout.strategy": ("hotel", "gap"),
    "rollout.replicas": ("hotel", 2),
    "rollout.startupSeconds": ("hotel", 60),
    "rollout.minReadySeconds": ("hotel", 0),
    "rollout.drainSeconds": ("hotel", 0),
    "rollout.revisionHistoryLimit": ("hotel", 1),
    "acceptanceTest.threshold": ("hotel", 0.9),
    "ask.databases": ("hotel", [{"name": "hotel", "existingClaim": "c", "file": "hotel.sqlite"}]),
    "ask.passwordSecret": ("hotel", "warehouse"),
    "ask.passwordKey": ("hotel", "reader"),
    "ask.bindNames": ("hotel", False),
    "ask.questionCharacters": ("hotel", 5000),
    "query.seconds": ("hotel", 1),
    "query.memoryMib": ("hotel", 64),
    "query.parallel": ("hotel", 1),
    "query.maxRows": ("hotel", 1),
    "service.type": ("hotel", "LoadBalancer"),
    "service.port": ("hotel", 8000),
    "service.annotations": ("hotel", {"a": "b"}),
    "gateway.enabled": (ALL, False),
    "gateway.name": (ALL, "another"),
    "gateway.namespace": (ALL, ""),
    "gateway.hostnames": (ALL, []),
    "gateway.requestTimeout": (ALL, ""),
    "canary.enabled": (ALL, False),
    "canary.models": (ALL, [{"name": "hotel", "uri": "s3://models/hotel/5"}]),
    "canary.weight": (ALL, 0),
    "canary.replicas": (ALL, 2),
    "networkPolicy.enabled": ("hotel", False),
    "networkPolicy.from": ("hotel", []),
    "networkPolicy.monitoring": ("hotel", [{"namespaceSelector": {}}]),
    "networkPolicy.dns.peers": ("hotel", [{"ipBlock": {"cidr": "169.254.20.10/32"}}]),
    "networkPolicy.dns.port": ("hotel", 5353),
    "networkPolicy.s3": ("hotel", [{"namespaceSelector": {}}]),
    "networkPolicy.s3Port": ("hotel", 8333),
    "networkPolicy.egress": ("hotel", [{"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}], "ports": [{"port": 5432}]}]),
    "podDisruptionBudget.enabled": ("hotel", False),
    "podDisruptionBudget.maxUnavailable": ("hotel", 0),
    "autoscaling.enabled": (ALL, False),
    "autoscaling.minReplicas": (ALL, 2),
    "autoscaling.maxReplicas": (ALL, 9),
    "autoscaling.metric": (ALL, "cpu"),
    "autoscaling.target": (ALL, 2),
    "metrics.serviceMonitor.enabled": (ALL, False),
    "metrics.serviceMonitor.interval": (ALL, "5s"),
    "metrics.serviceMonitor.labels": (ALL, {"release": "other"}),
    "smokeTest.enabled": ("hotel", False),
    "smokeTest.tokenKey": ("hotel", "tester"),
    "smokeTest.resources": ("hotel", {"limits": {"memory": "1Gi"}}),
    "anythingllm.enabled": (ALL, False),
    "anythingllm.image.repository": (ALL, "mirror.example.com/anythingllm"),
    "anythingllm.image.tag": (ALL, "1.16.0"),
    "anythingllm.image.digest": (ALL, "sha256:" + "0" * 64),
    "anythingllm.image.pullPolicy": (ALL, "Never"),
    "anythingllm.contextLength": (ALL, 4096),
    "anythingllm.tokenKey": (ALL, "chat"),
    "anythingllm.existingSecret": (ALL, ""),
    "anythingllm.service.type": (ALL, "NodePort"),
    "anythingllm.service.port": (ALL, 80),
    "anythingllm.storage.size": (ALL, "1Gi"),
    "anythingllm.storage.storageClass": (ALL, "fast"),
    "anythingllm.egress": (ALL, [{"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}], "ports": [{"port": 443}]}]),
    "anythingllm.resources": (ALL, {"limits": {"memory": "1Gi"}}),
    "serviceAccount.create": ("hotel", False),
    "serviceAccount.name": ("hotel", "mine"),
    "serviceAccount.annotations": ("hotel", {"a": "b"}),
    "podAnnotations": ("hotel", {"a": "b"}),
    "nodeSelector": ("hotel", {"disk": "fast"}),
    "tolerations": ("hotel", [{"key": "serving", "operator": "Exists"}]),
    "affinity": ("hotel", {"nodeAffinity": {}}),
    "extraVolumes": ("hotel", [{"name": "published", "emptyDir": {}}]),
    "extraVolumeMounts": (ALL, [{"name": "published", "mountPath": "/published", "subPath": "models"}]),
}
# Other values that must be set for the value to have an effect.
PREREQUISITES = {
    "storage.path": ('storage={"kind": "hostPath", "path": "/models"}',),
    "serviceAccount.create": ('serviceAccount.name="mine"',),
    "gateway.enabled": ("canary.enabled=false",),
    "gpu.enabled": ('gpu.pool=""',),
    "ask.passwordKey": ('ask.passwordSecret="warehouse"',),
}


def leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the names of the values that have, or should have, their own entry in OTHER_CONTENTS."""
    for key, value in values.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and value and name not in OTHER_CONTENTS:
            yield from leaves(value, f"{name}.")
        else:
            yield name


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref", "")
    return SCHEMA["definitions"][reference.rpartition("/")[2]] if reference else schema


def closed_objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and schema of every object that lists its properties."""
    schema = resolved(schema)
    if "properties" in schema:
        yield path, schema
        for name, below in schema["properties"].items():
            yield from closed_objects(below, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from closed_objects(schema["items"], f"{path}[]")


@needs_helm
@pytest.mark.parametrize(("value", "place", "text"), WRONG_TYPES_AND_FORMS)
def test_a_wrong_value_is_named(value: str, place: str, text: str) -> None:
    (line,) = (line for line in refusal("hotel", value).splitlines() if line.startswith(f"- at '{place}':"))
    assert text in line


@needs_helm
@pytest.mark.parametrize(("example", "values", "text"), RULES_BETWEEN_VALUES)
def test_values_that_contradict_each_other_are_named(example: str, values: tuple[str, ...], text: str) -> None:
    assert text in refusal(example, *values)


@needs_helm
@pytest.mark.parametrize("name", ["4090", "hotel.v2", "h" * 49])
def test_a_release_name_must_be_a_valid_service_name(name: str) -> None:
    assert f'release name "{name}": Services are named after it' in refusal("hotel", release=name)


@needs_helm
def test_all_wrong_values_are_reported_together() -> None:
    error = refusal("hotel", "models=[]", 'gpu.pool="A100"', "serviceAccount.create=false")
    assert [line.split(" ")[1].partition("=")[0] for line in error.splitlines() if line.startswith("- ")] == [
        "serviceAccount.name",
        "models",
        "gpu.pool",
    ]


def test_every_value_has_an_entry_in_these_tests() -> None:
    assert list(leaves(VALUES)) == list(OTHER_CONTENTS)


@needs_helm
@pytest.mark.parametrize("name", OTHER_CONTENTS)
def test_every_value_is_used(name: str) -> None:
    example, other = OTHER_CONTENTS[name]

    def rendered(*sets: str) -> list[Any]:
        documents = render(example, *PREREQUISITES.get(name, ()), *sets).documents
        # Tokens are random.
        return [d | {"data": sorted(d["data"])} if d["kind"] == "Secret" else d for d in documents]

    assert rendered() != rendered(f"{name}={json.dumps(other)}")


def test_schema_and_values_have_the_same_keys() -> None:
    def compare(schema: dict[str, Any], values: dict[str, Any], path: str) -> None:
        properties = resolved(schema).get("properties")
        if properties is None:
            return
        assert set(properties) - {"global"} == set(values), path
        for key, value in values.items():
            if isinstance(value, dict):
                compare(properties[key], value, f"{path}.{key}")

    compare(SCHEMA, VALUES, "")


def test_the_schema_refuses_unknown_keys() -> None:
    allowed = {"extraVolumes"}  # its volumes can be of any kind that Kubernetes supports
    open_objects = [path for path, schema in closed_objects(SCHEMA) if schema.get("additionalProperties") is not False]
    assert {path.strip(".[]") for path in open_objects} == allowed


def test_the_pools_are_those_of_training() -> None:
    assert VALUES["gpu"]["pools"] == {name: pool.label for name, pool in load_pools().items() if pool.gpu_memory_gib}


def table(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TABLE), *words], capture_output=True, text=True)


def test_the_readme_s_table_is_up_to_date() -> None:
    done = table("--check")
    assert done.returncode == 0, done.stderr


def test_an_outdated_table_is_reported_and_rewritten(tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    values = chart / "values.yaml"
    values.write_text(values.read_text("utf-8") + "\n# Another one\nanother: 1\n", "utf-8")
    assert table(str(chart), "--check").returncode == 1
    assert table(str(chart)).returncode == 0
    assert "| `another` | `1` | Another one |" in (chart / "README.md").read_text("utf-8")
    assert table(str(chart), "--check").returncode == 0


def test_a_value_without_description_is_named(tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    values = chart / "values.yaml"
    values.write_text(values.read_text("utf-8") + "\nanother: 1\n", "utf-8")
    done = table(str(chart), "--check")
    assert (done.returncode, "add a comment above another" in done.stderr) == (1, True)
