"""`chatmetrics doctor` on a real cluster: a working setup, and many in which one thing is really broken.

Each test has its own namespace, so it breaks nothing for others. Needs a cluster with KFP and an S3 store
(KFP_ENDPOINT, KUBECONFIG, AWS_*), and a node with the label `accelerator`, GPUs and at least one image.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from kubernetes import client, config
from kubernetes.utils import create_from_dict

from chatmetrics.components.image import source_hash
from tests.command import finished_process
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not os.environ.get("KFP_ENDPOINT"), reason="needs a cluster: KFP_ENDPOINT")

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
class DoctorReport:
    """Output of the command: verdict and line of each check, the last line, and the exit status."""

    findings: dict[str, tuple[str, str]]
    summary: str
    status: int

    def failed(self) -> set[str]:
        return {name for name, (verdict, _) in self.findings.items() if verdict == "failed"}


@dataclass(frozen=True)
class Sandbox:
    """A namespace for one test, with labels of the cluster's GPU nodes and the name of an image on them."""

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

    def doctor(self, *options: str, **environment: str) -> DoctorReport:
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
        arguments = ["doctor", "hotel-demo", "--pools", pools, *chosen, *where, *options]
        known = {**os.environ, "CHATMETRICS_IMAGE_DIGESTS": str(digests), **environment}
        return parse_report(finished_process(*arguments, environment=known, folder=self.folder))


def parse_report(done: subprocess.CompletedProcess[str]) -> DoctorReport:
    findings: dict[str, tuple[str, str]] = {}
    *rest, last = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    for line in rest:
        found = re.fullmatch(r"(ok|warning|failed|-) +([\w ]+): (.+)", line)
        assert found, done.stdout + done.stderr
        findings[found[2]] = (found[1], found[3])
    return DoctorReport(findings, last, done.returncode)


@pytest.fixture(scope="module")
def api() -> Any:
    config.load_config()
    return client.ApiClient()


@pytest.fixture
def sandbox(api: Any, tmp_path: Path) -> Iterator[Sandbox]:
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
        yield Sandbox(
            api,
            namespace,
            tmp_path,
            ours[0].metadata.labels[LABEL],
            tainted[0] if tainted else "",
            ours[0].status.images[0].names[0],
        )
    finally:
        core.delete_namespace(namespace)


def test_nothing_fails_in_a_working_setup(sandbox: Sandbox) -> None:
    sandbox.apply(*HEALTHY)
    report = sandbox.doctor()
    assert report.failed() == set()
    assert report.status == 0
    assert re.match(r"nothing failed: \d+ ok", report.summary)
    assert "written, read back, deleted" in report.findings["store"][1]
    assert report.findings["images"] == ("ok", f"{', '.join(IMAGES)}: on the node")
    assert re.match(r"\d+ nodes? of HERE, \d+ of \d+ nvidia.com/gpu free", report.findings["nodes"][1])


@dataclass(frozen=True)
class Broken:
    """A setup with one thing broken, and the expected line."""

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
    "the API's kind": Broken(
        "api",
        "came instead of an answer of the API; check --kfp-host",
        ("--kfp-host", os.environ.get("KFP_S3_ENDPOINT", "")),
    ),
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
    "GPUs": Broken("nodes", "train requests 2 nvidia.com/gpu", ("--set", "train.processes=2")),
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
        "train requests 1 requests.nvidia.com/gpu, quota small allows a total of 0; raise it",
        manifests=[*HEALTHY, quota(**{"requests.nvidia.com/gpu": "0"})],
    ),
    "quota of memory": Broken(
        "quota",
        "train requests 2Gi requests.memory, quota small allows a total of 1Gi",
        manifests=[*HEALTHY, quota(**{"requests.memory": "1Gi"})],
    ),
    "quota of CPU limits": Broken(
        "quota", "add a LimitRange with default.cpu", manifests=[*HEALTHY, quota(**{"limits.cpu": "100"})]
    ),
    "limit range": Broken(
        "quota", "train requests 2Gi memory, a LimitRange allows a Container 1Gi", manifests=[*HEALTHY, LIMITS]
    ),
    "claim": Broken("claims", "there is no data in {namespace}; create it", ("--set", "cluster.data_claim=data")),
    "storage class": Broken(
        "claims",
        "data has the storage class doctor-nowhere, which does not exist",
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
def test_one_broken_thing_is_one_failure_with_the_expected_line(sandbox: Sandbox, what: str) -> None:
    broken = BROKEN[what]
    if what == "Kueue" and kueue_is_there(sandbox.api):
        pytest.skip("Kueue is installed")
    if what == "taint" and not sandbox.tainted_label:
        pytest.skip("no GPU node has a taint")
    sandbox.apply(*broken.manifests)
    report = sandbox.doctor(*broken.options, **broken.environment)
    verdict, line = report.findings[broken.check]
    assert verdict == "failed"
    assert broken.line.format(namespace=sandbox.namespace) in line
    assert report.failed() == {broken.check}
    assert report.status == 5
    assert report.summary == f"error: 1 of {len(report.findings)} checks failed: {broken.check}"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on the PATH")
def test_the_commands_in_a_line_fix_the_failure(sandbox: Sandbox) -> None:
    sandbox.apply(ACCOUNT[0])
    broken = sandbox.doctor()
    assert broken.failed() == {"account rights", "secrets"}
    for check in ("account rights", "secrets"):
        subprocess.run(broken.findings[check][1].partition("; ")[2], shell=True, check=True, stdout=subprocess.DEVNULL)
    assert sandbox.doctor().failed() == set()


def test_an_account_with_few_rights_gets_missing_rights_and_skipped_checks(sandbox: Sandbox) -> None:
    sandbox.apply(*HEALTHY)
    report = sandbox.doctor(KUBECONFIG=str(kubeconfig(sandbox, "pipeline-runner")))
    assert report.findings["kubernetes"][1].endswith(f"as system:serviceaccount:{sandbox.namespace}:pipeline-runner")
    verdict, line = report.findings["helm rights"]
    assert verdict == "failed"
    assert "get/list/watch/create/patch/delete deployments.apps" in line
    assert "create/patch secrets" in line  # this account already has the right to get them
    create_role = f"kubectl -n {sandbox.namespace} create role chatmetrics-deploy"
    assert f"{create_role} --verb=get,list,watch,create,patch,delete" in line
    assert f"--role=chatmetrics-deploy --serviceaccount={sandbox.namespace}:pipeline-runner" in line
    assert report.failed() == {"helm rights"}
    assert report.findings["our rights"][0] == "warning"
    assert "we may not list nodes: a pool without nodes is not noticed" in report.findings["our rights"][1]
    for check in ("namespace", "account rights", "nodes", "taints", "requests", "quota"):
        verdict, line = report.findings[check]
        assert verdict == "-"
        assert "403" in line
    assert report.findings["secrets"][0] == "ok"


def test_without_kubernetes_the_other_checks_run(sandbox: Sandbox) -> None:
    report = sandbox.doctor(KUBECONFIG=str(sandbox.folder / "none"))
    assert report.status == 0
    assert report.findings["kubernetes"][0] == "warning"
    assert report.findings["nodes"] == ("-", "skipped: no access to Kubernetes")
    assert {report.findings[check][0] for check in ("api", "store", "bucket policy")} == {"ok"}


def test_running_pods_are_counted_and_pending_pods_are_not(sandbox: Sandbox) -> None:
    sandbox.apply(*HEALTHY, pod_holding_a_gpu("kubernetes.io/hostname", "doctor-nowhere"))
    before = free_gpus(sandbox.doctor("--gpu-pool", "APART"))
    if not sandbox.tainted_label:
        pytest.skip("no GPU node has a taint")
    sandbox.apply(pod_holding_a_gpu(LABEL, sandbox.tainted_label))
    wait_until(lambda: phases(sandbox).get(f"hold-{LABEL}") == "Running", 60, pause=0.2)
    assert free_gpus(sandbox.doctor("--gpu-pool", "APART")) == before - 1


def test_a_volume_for_one_node_is_a_warning_if_steps_run_on_several(sandbox: Sandbox) -> None:
    if not sandbox.tainted_label:
        pytest.skip("no GPU node has a taint")
    sandbox.apply(*HEALTHY, claim(None))
    report = sandbox.doctor("--gpu-pool", "APART", "--set", "cluster.weights_claim=data")
    verdict, line = report.findings["claims"]
    assert verdict == "warning"
    assert line.startswith("data is ReadWriteOnce, and convert-base, distill, merge, preprocess, train may run on")
    assert line.endswith("use ReadWriteMany")


def test_a_public_bucket_is_a_failure(sandbox: Sandbox) -> None:
    sandbox.apply(*HEALTHY)
    bucket = f"{sandbox.namespace}-public"
    everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everybody]})
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=bucket)
    try:
        s3.put_bucket_policy(Bucket=bucket, Policy=policy)
        report = sandbox.doctor("--set", f"cluster.store=s3://{bucket}/x")
        assert report.failed() == {"bucket policy"}
        assert report.findings["bucket policy"][1].startswith(f"the bucket {bucket} is public")
        assert "Contents" not in s3.list_objects_v2(Bucket=bucket)  # doctor has deleted what it wrote
    finally:
        s3.delete_bucket(Bucket=bucket)


def test_a_store_address_that_is_not_a_service_is_a_warning(sandbox: Sandbox) -> None:
    sandbox.apply(*HEALTHY)
    report = sandbox.doctor("--set", "cluster.s3_endpoint=http://minio.doctor-nowhere:9000")
    verdict, line = report.findings["store for pods"]
    assert verdict == "warning"
    assert "no service minio in namespace doctor-nowhere" in line


@pytest.mark.parametrize(
    ("local", "cluster_queue", "verdict", "line"),
    [
        ("team-a", {}, "failed", "there is no LocalQueue team-b in {namespace}"),
        ("team-b", {"active": "False"}, "failed", "is not active: it has no flavor"),
        ("team-b", {"resources": ["cpu", "memory"]}, "failed", "does not cover nvidia.com/gpu"),
        ("team-b", {}, "ok", "team-b, of the ClusterQueue {namespace}"),
    ],
)
def test_a_queue_must_exist_and_be_active_and_cover_gpus(
    sandbox: Sandbox, kueue: None, local: str, cluster_queue: dict[str, Any], verdict: str, line: str
) -> None:
    sandbox.apply(*HEALTHY)
    custom = client.CustomObjectsApi(sandbox.api)
    resources = cluster_queue.get("resources", ["cpu", "memory", "nvidia.com/gpu"])
    active = {"type": "Active", "status": cluster_queue.get("active", "True"), "message": "it has no flavor"}
    body: Manifest = {
        "apiVersion": f"{KUEUE}/v1beta1",
        "kind": "ClusterQueue",
        "metadata": {"name": sandbox.namespace},
        "spec": {"resourceGroups": [{"coveredResources": resources}]},
        "status": {"conditions": [active]},
    }
    custom.create_cluster_custom_object(KUEUE, "v1beta1", "clusterqueues", body)
    try:
        body = {
            "apiVersion": f"{KUEUE}/v1beta1",
            "kind": "LocalQueue",
            "metadata": {"name": local},
            "spec": {"clusterQueue": sandbox.namespace},
        }
        custom.create_namespaced_custom_object(KUEUE, "v1beta1", sandbox.namespace, "localqueues", body)
        report = sandbox.doctor("--set", "cluster.queue=team-b")
    finally:
        custom.delete_cluster_custom_object(KUEUE, "v1beta1", "clusterqueues", sandbox.namespace)
    assert report.findings["queue"][0] == verdict
    assert line.format(namespace=sandbox.namespace) in report.findings["queue"][1]


@pytest.fixture(scope="module")
def kueue(api: Any) -> Iterator[None]:
    """Kueue's CRDs without its controller, which would overwrite the status of a queue."""
    if kueue_is_there(api):
        pytest.skip("Kueue is installed")
    crds = client.ApiextensionsV1Api(api)
    kinds = {"LocalQueue": "Namespaced", "ClusterQueue": "Cluster"}
    for kind, scope in kinds.items():
        plural = f"{kind.lower()}s"
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        version = {"name": "v1beta1", "served": True, "storage": True, "schema": schema}
        names = {"kind": kind, "plural": plural}
        # CRDs in a *.k8s.io group need this annotation.
        annotations = {"api-approved.kubernetes.io": "unapproved, for a test"}
        spec = {"group": KUEUE, "scope": scope, "names": names, "versions": [version]}
        crds.create_custom_resource_definition(
            {"metadata": {"name": f"{plural}.{KUEUE}", "annotations": annotations}, "spec": spec}
        )
    try:
        wait_until(
            lambda: kueue_is_there(api) and all(is_served(api, f"{kind.lower()}s") for kind in kinds), 60, pause=0.2
        )
        yield
    finally:
        for kind in kinds:
            crds.delete_custom_resource_definition(f"{kind.lower()}s.{KUEUE}")
        wait_until(lambda: not kueue_is_there(api), 120, pause=0.2)


def kueue_is_there(api: Any) -> bool:
    return any(group.name == KUEUE for group in client.ApisApi(api).get_api_versions().groups)


def is_served(api: Any, plural: str) -> bool:
    try:
        client.CustomObjectsApi(api).list_cluster_custom_object(KUEUE, "v1beta1", plural)
    except client.ApiException as error:
        if error.status in (404, 503):  # the CRD exists, but the API server does not serve it yet
            return False
        raise
    return True


def kubeconfig(sandbox: Sandbox, account: str) -> Path:
    """Path of a kubeconfig for a service account."""
    token = client.CoreV1Api(sandbox.api).create_namespaced_service_account_token(
        account, sandbox.namespace, {"spec": {}}
    )
    configuration = sandbox.api.configuration
    authority = {"certificate-authority": configuration.ssl_ca_cert} if configuration.ssl_ca_cert else {}
    path = sandbox.folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "it",
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
                "clusters": [{"name": "it", "cluster": {"server": configuration.host, **authority}}],
                "users": [{"name": "it", "user": {"token": token.status.token}}],
            }
        )
    )
    return path


def pod_holding_a_gpu(key: str, value: str) -> Manifest:
    """Manifest of a pod that holds a GPU of a node with this label."""
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


def phases(sandbox: Sandbox) -> dict[str, str]:
    pods = client.CoreV1Api(sandbox.api).list_namespaced_pod(sandbox.namespace).items
    return {pod.metadata.name: pod.status.phase for pod in pods}


def free_gpus(report: DoctorReport) -> int:
    found = re.search(r"(-?\d+) of \d+ nvidia.com/gpu free", report.findings["nodes"][1])
    assert found, report.findings["nodes"]
    return int(found[1])
