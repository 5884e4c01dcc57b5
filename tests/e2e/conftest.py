"""A real cluster: where it is comes from the environment, as for a user (README, Develop)."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kfp import Client

from chatmetrics.components.storage.store import Store, open_store
from chatmetrics.pipelines.cluster.kubernetes import Cluster
from tests.command import finished_process

SESSION = int(time.time())
NAME = f"e2e-demo-{SESSION}"  # so that nothing of an earlier session's is in KFP's cache, nor anything in the store
STORE = f"s3://{os.environ.get('KFP_BUCKET', 'mlpipeline')}/chatmetrics"
# The hotel demo, small: it learns next to nothing, in a minute.
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
    """A finished command."""

    status: int
    output: str
    error: str

    @property
    def run_id(self) -> str:
        """The run that it started."""
        found = RUN_LINE.search(self.output)
        assert found, self.output + self.error
        return found[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why nothing runs without a cluster."""
    if not os.environ.get("KFP_ENDPOINT"):
        for item in items:
            if "e2e" in str(item.path.parent.name):
                item.add_marker(pytest.mark.skip(reason="KFP_ENDPOINT is not set: there is no cluster"))


def chatmetrics(*words: str) -> Done:
    """Run the command to its end."""
    done = finished_process(*words, timeout=1500)
    return Done(done.returncode, done.stdout, done.stderr)


def submit(pool: str, *words: str, **settings: object) -> Done:
    """Submit the small demo with some settings changed; `__` in a name stands for a point."""
    chosen = SMALL | {name.replace("__", "."): value for name, value in settings.items()}
    overrides = [word for name, value in chosen.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    return chatmetrics("submit", "hotel-demo", "--gpu-pool", pool, *overrides, *words)


@pytest.fixture(scope="session")
def namespace() -> str:
    return os.environ.get("KFP_NAMESPACE", "kubeflow")


@pytest.fixture(scope="session")
def client(namespace: str) -> Client:
    return Client(host=os.environ["KFP_ENDPOINT"], namespace=namespace)


@pytest.fixture(scope="session")
def cluster(namespace: str) -> Cluster:
    return Cluster(namespace)


@pytest.fixture(scope="session")
def store() -> Store:
    """What runs keep."""
    return open_store(STORE)


@pytest.fixture
def train_pod(cluster: Cluster) -> Callable[[str], Any]:
    """Waits until a run's train pod is on a node and started, and returns it."""

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
    """The store's, as the cluster's set-up prints them."""
    given = {"ENDPOINT_URL_S3": "S3_ENDPOINT", "ACCESS_KEY_ID": "S3_ACCESS_KEY", "SECRET_ACCESS_KEY": "S3_SECRET_KEY"}
    given |= {"REGION": "S3_REGION"}
    with pytest.MonkeyPatch.context() as patch:
        for name, printed in given.items():
            if value := os.environ.get(f"KFP_{printed}"):
                patch.setenv(f"AWS_{name}", value)
        yield
