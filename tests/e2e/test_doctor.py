"""`chatmetrics doctor` on a real cluster: one healthy set-up, and many with one thing broken for real.

Each test has a namespace of its own, so what it breaks is nobody else's. Needs a cluster with KFP and an S3 store:
KFP_ENDPOINT, KUBECONFIG, AWS_*; a node with the label `accelerator`, GPUs and at least one image on it.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from kubernetes import client, config
from kubernetes.utils import create_from_dict

from chatmetrics.components.image import source_hash

pytestmark = pytest.mark.skipif(not os.environ.get("KFP_ENDPOINT"), reason="needs a cluster: KFP_ENDPOINT")

PROGRAM = "from chatmetrics.pipelines.cli.main import main; main()"
IMAGES = ("preprocess", "train", "merge", "convert", "evaluate", "distill")
LABEL = "accelerator"
SECRET = "mlpipeline-minio-artifact"
ENCODED = base64.b64encode(b"not a real one").decode()
KUEUE = "kueue.x-k8s.io"
Manifest = dict[str, Any]

ACCOUNT: list[Manifest] = [
    {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "pipeline-runner"}},
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "runner"},
        "rules": [
            {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]},
            {"apiGroups": [""], "resources": ["configmaps", "secrets"], "verbs": ["get"]},
        ],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "runner"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "runner"},
        "subjects": [{"kind": "ServiceAccount", "name": "pipeline-runner"}],
    },
]
KEYS: Manifest = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": SECRET},
    "data": {"accesskey": ENCODED, "secretkey": ENCODED},
}
HEALTHY = [*ACCOUNT, KEYS]


def without(kind: str) -> list[Manifest]:
    return [manifest for manifest in HEALTHY if manifest["kind"] != kind]


def quota(**hard: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": hard}}


def claim(storage_class: str | None) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            **({"storageClassName": storage_class} if storage_class else {}),
        },
    }


@dataclass(frozen=True)
class Said:
    """What the command printed: each check's verdict and line, and how it ended."""

    findings: dict[str, tuple[str, str]]
    summary: str
    status: int

    def failed(self) -> set[str]:
        return {name for name, (verdict, _) in self.findings.items() if verdict == "failed"}


@dataclass(frozen=True)
class Home:
    """A namespace, pools of the cluster as it is, and images that its nodes have."""

    api: Any
    namespace: str
    folder: Path
    gpu_label: str
    tainted_label: str
    image: str

    def apply(self, *manifests: Manifest) -> None:
        for manifest in manifests:
            body = json.loads(json.dumps(manifest))
            for subject in body.get("subjects", ()):
                subject["namespace"] = self.namespace
            create_from_dict(self.api, body, namespace=self.namespace)

    def doctor(self, *options: str, **environment: str) -> Said:
        digests, pools = self.folder / "digests.json", self.folder / "pools.yaml"
        digests.write_text(
            json.dumps({name: {"hash": source_hash(name), "reference": self.image, "digest": None} for name in IMAGES})
        )
        pools.write_text(
            yaml.safe_dump(
                {
                    "HERE": {"label": self.gpu_label, "gpu_memory_gib": 40},
                    "NOWHERE": {"label": "doctor-nowhere", "gpu_memory_gib": 40},
                    "CLOSED": {"label": self.tainted_label, "gpu_memory_gib": 40, "tolerations": []},
                    "APART": {"label": self.tainted_label, "gpu_memory_gib": 40},
                }
            )
        )
        never = {
            name: {"hash": source_hash(name), "reference": f"localhost/doctor-never-built/{name}:1", "digest": None}
            for name in IMAGES
        }
        (self.folder / "never-built.json").write_text(json.dumps(never))
        chosen = () if "--gpu-pool" in options else ("--gpu-pool", "HERE")
        where = () if "--namespace" in options else ("--namespace", self.namespace)
        command = [sys.executable, "-c", PROGRAM, "doctor", "hotel-demo", "--pools", str(pools), *chosen, *where]
        done = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
            env={**os.environ, "CHATMETRICS_IMAGE_DIGESTS": str(digests), **environment},
        )
        return read(done)


def read(done: subprocess.CompletedProcess[str]) -> Said:
    findings: dict[str, tuple[str, str]] = {}
    *rest, last = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    for line in rest:
        found = re.fullmatch(r"(ok|warning|failed|-) +([\w ]+): (.+)", line)
        assert found, done.stdout + done.stderr
        findings[found[2]] = (found[1], found[3])
    return Said(findings, last, done.returncode)


@pytest.fixture(scope="module")
def api() -> Any:
    config.load_config()
    return client.ApiClient()


@pytest.fixture
def home(api: Any, tmp_path: Path) -> Iterator[Home]:
    core = client.CoreV1Api(api)
    nodes = [node for node in core.list_node().items if LABEL in node.metadata.labels]
    with_gpus = [node for node in nodes if int(node.status.allocatable.get("nvidia.com/gpu", 0))]
    ours = [node for node in with_gpus if node.status.images]
    tainted = [node.metadata.labels[LABEL] for node in with_gpus if node.spec.taints]
    if not ours:
        pytest.skip(f"no node has GPUs, the label {LABEL} and an image")
    namespace = f"doctor-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": namespace}})
    try:
        yield Home(
            api,
            namespace,
            tmp_path,
            ours[0].metadata.labels[LABEL],
            tainted[0] if tainted else "",
            ours[0].status.images[0].names[0],
        )
    finally:
        core.delete_namespace(namespace)


def test_nothing_fails_where_all_is_well(home: Home) -> None:
    home.apply(*HEALTHY)
    said = home.doctor()
    assert said.failed() == set()
    assert said.status == 0
    assert re.match(r"nothing failed: \d+ ok", said.summary)
    assert "written, read back, deleted" in said.findings["store"][1]
    assert said.findings["images"] == ("ok", f"{', '.join(IMAGES)}: on the node")
    assert re.match(r"\d+ nodes? of HERE, \d+ of \d+ nvidia.com/gpu free", said.findings["nodes"][1])


@dataclass(frozen=True)
class Broken:
    """A set-up with one thing broken, and the right line."""

    check: str
    line: str
    options: tuple[str, ...] = ()
    manifests: list[Manifest] = field(default_factory=lambda: HEALTHY)
    environment: dict[str, str] = field(default_factory=dict)


LIMITS: Manifest = {
    "apiVersion": "v1",
    "kind": "LimitRange",
    "metadata": {"name": "small"},
    "spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]},
}
HUB: Manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}, "data": {"tokn": ENCODED}}
BROKEN = {
    "the API's address": Broken("api", "does not answer", ("--kfp-host", "http://127.0.0.1:1")),
    "the API's kind": Broken("api", "is that the API's address", ("--kfp-host", os.environ.get("KFP_S3_ENDPOINT", ""))),
    "namespace": Broken(
        "namespace", "kubectl create namespace doctor-nowhere", ("--namespace", "doctor-nowhere"), manifests=[]
    ),
    "service account": Broken(
        "service account",
        "there is no runner in {namespace}; set cluster.service_account, or "
        "kubectl -n {namespace} create serviceaccount runner",
        ("--set", "cluster.service_account=runner"),
        [*HEALTHY[1:2], {**ACCOUNT[2], "subjects": [{"kind": "ServiceAccount", "name": "runner"}]}, KEYS],
    ),
    "account's rights": Broken(
        "account rights",
        "pipeline-runner may not create/patch workflowtaskresults.argoproj.io, get configmaps, get secrets; "
        "kubectl -n {namespace} create role chatmetrics-steps --verb=create,patch",
        manifests=without("RoleBinding"),
    ),
    "pool": Broken(
        "nodes", f"has the label {LABEL}=doctor-nowhere; the cluster's nodes have", ("--gpu-pool", "NOWHERE")
    ),
    "GPUs": Broken("nodes", "train asks for 99 nvidia.com/gpu", ("--set", "train.processes=99")),
    "taint": Broken("taints", "add it to the pool's tolerations", ("--gpu-pool", "CLOSED")),
    "memory": Broken(
        "requests",
        "no node is large enough for train (1 CPU, 9000Gi of memory, 1 nvidia.com/gpu)",
        ("--set", "cluster.requests={train: {memory: 9000Gi}}"),
    ),
    "CPU of a step": Broken(
        "requests",
        "lower cluster.requests.merge",
        ("--set", "cluster.requests={merge: {cpu: '900'}}"),
    ),
    "quota of GPUs": Broken(
        "quota",
        "train asks for 1 requests.nvidia.com/gpu, quota small allows 0 in all; raise it",
        manifests=[*HEALTHY, quota(**{"requests.nvidia.com/gpu": "0"})],
    ),
    "quota of memory": Broken(
        "quota",
        "train asks for 2Gi requests.memory, quota small allows 1Gi in all",
        manifests=[*HEALTHY, quota(**{"requests.memory": "1Gi"})],
    ),
    "quota of CPU limits": Broken(
        "quota", "add a LimitRange with default.cpu", manifests=[*HEALTHY, quota(**{"limits.cpu": "100"})]
    ),
    "limit range": Broken(
        "quota", "train asks for 2Gi memory, a LimitRange allows a Container 1Gi", manifests=[*HEALTHY, LIMITS]
    ),
    "claim": Broken("claims", "there is no data in {namespace}; create it", ("--set", "cluster.data_claim=data")),
    "storage class": Broken(
        "claims",
        "data is of the storage class doctor-nowhere, which there is not",
        ("--set", "cluster.data_claim=data"),
        [*HEALTHY, claim("doctor-nowhere")],
    ),
    "bucket": Broken(
        "store", "the bucket doctor-nowhere does not exist", ("--set", "cluster.store=s3://doctor-nowhere/x")
    ),
    "S3 credentials": Broken(
        "store", "refused the credentials", environment={"AWS_SECRET_ACCESS_KEY": "not-the-right-one"}
    ),
    "S3 address": Broken(
        "store",
        "http://127.0.0.1:1 does not answer",
        environment={"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"},
    ),
    "secret": Broken(
        "secrets",
        f"there is no {SECRET} in {{namespace}}; kubectl -n {{namespace}} create secret generic {SECRET} "
        "--from-literal=accesskey=... --from-literal=secretkey=...",
        manifests=without("Secret"),
    ),
    "key of a secret": Broken(
        "secrets",
        "hub has no key token, it has tokn",
        ("--set", "cluster.hub_secret=hub"),
        [*HEALTHY, HUB],
    ),
    "pull secret": Broken(
        "secrets", "hub has no key .dockerconfigjson", ("--set", "cluster.image_pull_secret=hub"), [*HEALTHY, HUB]
    ),
    "images": Broken(
        "images",
        "not on any node; build and push: chatmetrics images build preprocess train merge convert evaluate distill",
        environment={"CHATMETRICS_IMAGE_DIGESTS": "never-built.json"},
    ),
    "Kueue": Broken("queue", "Kueue is not installed", ("--set", "cluster.queue=team-a")),
    "namespace to serve in": Broken(
        "helm rights", "kubectl create namespace doctor-nowhere", ("--deploy-namespace", "doctor-nowhere")
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_one_thing_broken_is_one_failure_with_the_right_line(home: Home, what: str) -> None:
    broken = BROKEN[what]
    if what == "Kueue" and kueue_is_there(home.api):
        pytest.skip("Kueue is installed")
    if what == "taint" and not home.tainted_label:
        pytest.skip("no GPU node has a taint")
    home.apply(*broken.manifests)
    said = home.doctor(*broken.options, **broken.environment)
    verdict, line = said.findings[broken.check]
    assert verdict == "failed"
    assert broken.line.format(namespace=home.namespace) in line
    assert said.failed() == {broken.check}
    assert said.status == 5
    assert said.summary == f"error: 1 of {len(said.findings)} checks failed: {broken.check}"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on the PATH")
def test_the_commands_of_a_line_mend_what_it_says(home: Home) -> None:
    home.apply(ACCOUNT[0])
    broken = home.doctor()
    assert broken.failed() == {"account rights", "secrets"}
    for check in ("account rights", "secrets"):
        subprocess.run(broken.findings[check][1].partition("; ")[2], shell=True, check=True, stdout=subprocess.DEVNULL)
    assert home.doctor().failed() == set()


def test_who_may_do_little_is_told_what_is_missing_and_what_is_not_seen(home: Home) -> None:
    home.apply(*HEALTHY)
    said = home.doctor(KUBECONFIG=str(kubeconfig(home, "pipeline-runner")))
    assert said.findings["kubernetes"][1].endswith(f"as system:serviceaccount:{home.namespace}:pipeline-runner")
    verdict, line = said.findings["helm rights"]
    assert verdict == "failed"
    assert "get/list/watch/create/update/patch/delete deployments.apps" in line
    assert "create/update/patch/delete secrets" in line  # this account may get them
    assert (
        f"kubectl -n {home.namespace} create role chatmetrics-deploy --verb=get,list,watch,create,update,patch,delete"
        in line
    )
    assert f"--role=chatmetrics-deploy --serviceaccount={home.namespace}:pipeline-runner" in line
    assert said.failed() == {"helm rights"}
    assert said.findings["our rights"][0] == "warning"
    assert "we may not list nodes: a pool without nodes is not noticed" in said.findings["our rights"][1]
    for check in ("namespace", "account rights", "nodes", "taints", "requests", "quota"):
        verdict, line = said.findings[check]
        assert verdict == "-"
        assert "403" in line
    assert said.findings["secrets"][0] == "ok"


def test_without_kubernetes_the_rest_is_looked_at(home: Home) -> None:
    said = home.doctor(KUBECONFIG=str(home.folder / "none"))
    assert said.status == 0
    assert said.findings["kubernetes"][0] == "warning"
    assert said.findings["nodes"] == ("-", "skipped: no access to Kubernetes")
    assert {said.findings[check][0] for check in ("api", "store", "bucket policy")} == {"ok"}


def test_a_pod_waiting_elsewhere_is_not_counted_and_a_running_one_is(home: Home) -> None:
    home.apply(*HEALTHY, holding("kubernetes.io/hostname", "doctor-nowhere"))
    before = free_gpus(home.doctor("--gpu-pool", "APART"))
    if not home.tainted_label:
        pytest.skip("no GPU node has a taint")
    home.apply(holding(LABEL, home.tainted_label))
    wait_until(lambda: phases(home).get(f"hold-{LABEL}") == "Running", 60)
    assert free_gpus(home.doctor("--gpu-pool", "APART")) == before - 1


def test_a_volume_for_one_node_is_warned_of_where_steps_run_on_several(home: Home) -> None:
    if not home.tainted_label:
        pytest.skip("no GPU node has a taint")
    home.apply(*HEALTHY, claim(None))
    said = home.doctor("--gpu-pool", "APART", "--set", "cluster.weights_claim=data")
    verdict, line = said.findings["claims"]
    assert verdict == "warning"
    assert line.startswith("data is ReadWriteOnce, and convert-base, distill, merge, preprocess, train may run on")
    assert line.endswith("use ReadWriteMany")


def test_a_bucket_that_everybody_may_read_is_a_failure(home: Home) -> None:
    home.apply(*HEALTHY)
    bucket = f"{home.namespace}-public"
    everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everybody]})
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=bucket)
    try:
        s3.put_bucket_policy(Bucket=bucket, Policy=policy)
        said = home.doctor("--set", f"cluster.store=s3://{bucket}/x")
        assert said.failed() == {"bucket policy"}
        assert said.findings["bucket policy"][1].startswith(f"the bucket {bucket} is public")
        assert "Contents" not in s3.list_objects_v2(Bucket=bucket)  # what doctor wrote is gone
    finally:
        s3.delete_bucket(Bucket=bucket)


def test_an_address_of_the_store_that_is_no_service_is_warned_of(home: Home) -> None:
    home.apply(*HEALTHY)
    said = home.doctor("--set", "cluster.s3_endpoint=http://minio.doctor-nowhere:9000")
    verdict, line = said.findings["store for pods"]
    assert verdict == "warning"
    assert "no service minio in namespace doctor-nowhere" in line


@pytest.mark.parametrize(
    ("local", "cluster_queue", "verdict", "line"),
    [
        ("team-a", {}, "failed", "there is no LocalQueue team-b in {namespace}"),
        ("team-b", {"active": "False"}, "failed", "is not active: no flavor is there"),
        ("team-b", {"resources": ["cpu", "memory"]}, "failed", "covers no nvidia.com/gpu"),
        ("team-b", {}, "ok", "team-b, of the ClusterQueue {namespace}"),
    ],
)
def test_a_queue_must_be_there_active_and_cover_gpus(
    home: Home, kueue: None, local: str, cluster_queue: dict[str, Any], verdict: str, line: str
) -> None:
    home.apply(*HEALTHY)
    custom = client.CustomObjectsApi(home.api)
    resources = cluster_queue.get("resources", ["cpu", "memory", "nvidia.com/gpu"])
    active = {"type": "Active", "status": cluster_queue.get("active", "True"), "message": "no flavor is there"}
    body: Manifest = {
        "apiVersion": f"{KUEUE}/v1beta1",
        "kind": "ClusterQueue",
        "metadata": {"name": home.namespace},
        "spec": {"resourceGroups": [{"coveredResources": resources}]},
        "status": {"conditions": [active]},
    }
    custom.create_cluster_custom_object(KUEUE, "v1beta1", "clusterqueues", body)
    try:
        body = {
            "apiVersion": f"{KUEUE}/v1beta1",
            "kind": "LocalQueue",
            "metadata": {"name": local},
            "spec": {"clusterQueue": home.namespace},
        }
        custom.create_namespaced_custom_object(KUEUE, "v1beta1", home.namespace, "localqueues", body)
        said = home.doctor("--set", "cluster.queue=team-b")
    finally:
        custom.delete_cluster_custom_object(KUEUE, "v1beta1", "clusterqueues", home.namespace)
    assert said.findings["queue"][0] == verdict
    assert line.format(namespace=home.namespace) in said.findings["queue"][1]


@pytest.fixture(scope="module")
def kueue(api: Any) -> Iterator[None]:
    """Kueue's kinds without its controller, which would give its own word on whether a queue is active."""
    if kueue_is_there(api):
        pytest.skip("Kueue is installed")
    crds = client.ApiextensionsV1Api(api)
    kinds = {"LocalQueue": "Namespaced", "ClusterQueue": "Cluster"}
    for kind, scope in kinds.items():
        plural = f"{kind.lower()}s"
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        version = {"name": "v1beta1", "served": True, "storage": True, "schema": schema}
        names = {"kind": kind, "plural": plural}
        # Kubernetes lets nobody but its own project define kinds in this group unless they say so.
        about = {"api-approved.kubernetes.io": "unapproved, for a test"}
        spec = {"group": KUEUE, "scope": scope, "names": names, "versions": [version]}
        crds.create_custom_resource_definition(
            {"metadata": {"name": f"{plural}.{KUEUE}", "annotations": about}, "spec": spec}
        )
    try:
        wait_until(lambda: kueue_is_there(api) and all(is_served(api, f"{kind.lower()}s") for kind in kinds), 60)
        yield
    finally:
        for kind in kinds:
            crds.delete_custom_resource_definition(f"{kind.lower()}s.{KUEUE}")
        wait_until(lambda: not kueue_is_there(api), 120)


def kueue_is_there(api: Any) -> bool:
    return any(group.name == KUEUE for group in client.ApisApi(api).get_api_versions().groups)


def is_served(api: Any, plural: str) -> bool:
    try:
        client.CustomObjectsApi(api).list_cluster_custom_object(KUEUE, "v1beta1", plural)
    except client.ApiException as error:
        if error.status in (404, 503):  # the kind is there, and the API server has not taken it up
            return False
        raise
    return True


def kubeconfig(home: Home, account: str) -> Path:
    """A kubeconfig that lets us in as a service account."""
    token = client.CoreV1Api(home.api).create_namespaced_service_account_token(account, home.namespace, {"spec": {}})
    us = home.api.configuration
    authority = {"certificate-authority": us.ssl_ca_cert} if us.ssl_ca_cert else {}
    path = home.folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "it",
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
                "clusters": [{"name": "it", "cluster": {"server": us.host, **authority}}],
                "users": [{"name": "it", "user": {"token": token.status.token}}],
            }
        )
    )
    return path


def holding(key: str, value: str) -> Manifest:
    """A pod that holds a GPU of a node with this label."""
    limits = {"limits": {"nvidia.com/gpu": "1"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"hold-{key.rpartition('/')[2]}"},
        "spec": {
            "nodeSelector": {key: value},
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "hold", "image": "localhost/none:1", "resources": limits}],
        },
    }


def phases(home: Home) -> dict[str, str]:
    pods = client.CoreV1Api(home.api).list_namespaced_pod(home.namespace).items
    return {pod.metadata.name: pod.status.phase for pod in pods}


def free_gpus(said: Said) -> int:
    found = re.search(r"(-?\d+) of \d+ nvidia.com/gpu free", said.findings["nodes"][1])
    assert found, said.findings["nodes"]
    return int(found[1])


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
