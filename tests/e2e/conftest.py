"""Fixtures for a real cluster, whose address comes from the environment (docs/cluster.md, Tested)."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kfp import Client

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.storage.store import Store, open_store
from tests.command import finished_process

DEPLOYER = Path(__file__).parents[2] / "helm" / "deployer.yaml"
SESSION = int(time.time())
NAME = f"e2e-demo-{SESSION}"  # differs in each session, so that neither KFP's cache nor the store has results for it
STORE = f"s3://{os.environ.get('KFP_BUCKET', 'mlpipeline')}/chatmetrics"
# The hotel demo with few examples and steps: it takes a minute, and the student learns almost nothing.
SMALL = {
    "name": NAME,
    "preprocess.limit": 160,
    "preprocess.seed": SESSION,
    "train.max_steps": 60,
    "train.checkpoint_steps": 10,
    "train.warmup_steps": 5,
    "evaluate.limit": 12,
    "evaluate.gate": 0,
    "evaluate.gate_split": "",
    "evaluate.gate_teacher": None,
    "evaluate.max_tokens": 48,
    "cluster.pending_minutes": 10,
    "cluster.store": STORE,
}
RUN_LINE = re.compile(r"^run (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Done:
    """Exit status and output of a finished command."""

    status: int
    output: str
    error: str

    @property
    def run_id(self) -> str:
        """Id of the run that the command started."""
        found = RUN_LINE.search(self.output)
        assert found, self.output + self.error
        return found[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a cluster if there is none. Start the runs first, because they take longest."""
    if not os.environ.get("KFP_ENDPOINT"):
        for item in items:
            if item.path.parent == Path(__file__).parent and not item.get_closest_marker("without_cluster"):
                item.add_marker(pytest.mark.skip(reason="KFP_ENDPOINT is not set: there is no cluster"))
    items.sort(key=lambda item: item.path.name != "test_runs.py")


def chatmetrics(*words: str) -> Done:
    """Run the `chatmetrics` command to its end."""
    done = finished_process(*words, timeout=1500)
    return Done(done.returncode, done.stdout, done.stderr)


def submit(pool: str, *words: str, **settings: object) -> Done:
    """Submit the small demo with some settings changed; `__` in a name is a dot."""
    chosen = SMALL | {name.replace("__", "."): value for name, value in settings.items()}
    overrides = [word for name, value in chosen.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    return chatmetrics("submit", "hotel-demo", "--gpu-pool", pool, *overrides, *words)


def deployer_manifests(runs: str, serving: str, release: str) -> str:
    """The objects of helm/deployer.yaml for other namespaces and another release."""
    text = DEPLOYER.read_text("utf-8").replace("namespace: chatmetrics\n", f"namespace: {serving}\n")
    text = text.replace("namespace: kubeflow\n", f"namespace: {runs}\n")
    text = text.replace("resourceNames: [chatmetrics]", f"resourceNames: [{release}]")
    return text.replace("resourceNames: [chatmetrics-tokens]", f"resourceNames: [{release}-tokens]")


def deployer_token(core: Any, namespace: str) -> str:
    """Create a token for the deployer's account that is bound to its secret, as the command in helm/deployer.yaml."""
    name = "chatmetrics-deployer"
    uid = core.read_namespaced_secret(name, namespace).metadata.uid
    bound = {"apiVersion": "v1", "kind": "Secret", "name": name, "uid": uid}
    request = {"spec": {"audiences": [], "boundObjectRef": bound, "expirationSeconds": 7200}}
    return str(core.create_namespaced_service_account_token(name, namespace, request).status.token)


@pytest.fixture(scope="session")
def namespace() -> str:
    return os.environ.get("KFP_NAMESPACE", "kubeflow")


@pytest.fixture(scope="session")
def client(namespace: str) -> Client:
    return Client(host=os.environ["KFP_ENDPOINT"], namespace=namespace)


@pytest.fixture(scope="session")
def cluster(namespace: str) -> KubernetesClient:
    return KubernetesClient(namespace)


@pytest.fixture(scope="session")
def store() -> Store:
    """The store of the runs."""
    return open_store(STORE)


@pytest.fixture
def train_pod(cluster: KubernetesClient) -> Callable[[str], Any]:
    """A function that waits until a run's train pod is running, and returns the pod."""

    def wait(run_id: str) -> Any:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            selector = f"pipeline/runid={run_id},chatmetrics/step=train"
            pods = cluster.core.list_namespaced_pod(cluster.namespace, label_selector=selector).items
            started = [pod for pod in pods if pod.spec.node_name and pod.status.phase == "Running"]
            if started:
                return started[-1]
            time.sleep(1)
        raise AssertionError(f"no train pod of {run_id} started")

    return wait


@pytest.fixture(scope="session", autouse=True)
def credentials() -> Iterator[None]:
    """Set AWS_* from the variables KFP_S3_* that describe the cluster's store."""
    variables = {
        "ENDPOINT_URL_S3": "S3_ENDPOINT",
        "ACCESS_KEY_ID": "S3_ACCESS_KEY",
        "SECRET_ACCESS_KEY": "S3_SECRET_KEY",
    }
    variables |= {"REGION": "S3_REGION"}
    with pytest.MonkeyPatch.context() as patch:
        for name, source in variables.items():
            if value := os.environ.get(f"KFP_{source}"):
                patch.setenv(f"AWS_{name}", value)
        yield
