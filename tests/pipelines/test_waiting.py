"""How long `submit --wait` lets a pod wait: a queue's gate, a node and an image each have a clock of their own."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import ServiceError
from chatmetrics.pipelines.cluster import runs
from chatmetrics.pipelines.cluster.kubeflow import Access
from chatmetrics.pipelines.cluster.runs import RunMonitor

GATES = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
MINUTES = 30  # cluster.pending_minutes
Pods = list[dict[str, Any]]


def ago(minutes: float) -> str:
    """A time, which the server below replaces when it is asked, however long that takes."""
    return f"{minutes} minutes ago"


def with_times(text: str) -> str:
    def time(found: re.Match[str]) -> str:
        return (datetime.now(UTC) - timedelta(minutes=float(found[1]))).strftime("%Y-%m-%dT%H:%M:%SZ")

    return re.sub(r"([\d.]+) minutes ago", time, text)


def pod(
    age: float,
    *,
    spec: dict[str, Any] | None = None,
    uid: str = "1",
    labels: dict[str, str] | None = None,
    generation: int = 1,
    **status: Any,
) -> dict[str, Any]:
    """A pending train pod that is `age` minutes old."""
    metadata = {
        "name": f"train-{uid}",
        "uid": uid,
        "creationTimestamp": ago(age),
        "generation": generation,
        "labels": {"chatmetrics/step": "train", "pipeline/runid": "run", **(labels or {})},
    }
    return {
        "metadata": metadata,
        "spec": {"containers": [{"name": "main"}], **(spec or {})},
        "status": {"phase": "Pending", **status},
    }


def scheduled(status: str, since: float | None, reason: str = "", message: str = "") -> dict[str, Any]:
    """The condition PodScheduled, changed `since` minutes ago. Its time stays when a gate is removed."""
    condition = {"type": "PodScheduled", "status": status, "reason": reason, "message": message}
    return {"conditions": [condition | ({"lastTransitionTime": ago(since)} if since is not None else {})]}


def gated(age: float, **more: Any) -> dict[str, Any]:
    return pod(age, spec=GATES, **scheduled("False", None, "SchedulingGated"), **more)


def unschedulable(age: float, since: float | None, **more: Any) -> dict[str, Any]:
    message = "0/3 nodes are available: 3 Insufficient memory."
    return pod(age, **more, **scheduled("False", since, "Unschedulable", message))


def starting(age: float, since: float | None, reason: str = "ContainerCreating") -> dict[str, Any]:
    waiting = {"name": "main", "image": "train", "imageID": "", "ready": False, "restartCount": 0}
    waiting["state"] = {"waiting": {"reason": reason}}
    return pod(age, spec={"nodeName": "n"}, **scheduled("True", since), containerStatuses=[waiting])


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """A function that follows a run whose pods are, poll by poll, as given; it returns what was terminated."""
    polls: list[Pods] = []

    class Kubernetes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"kind": "PodList", "apiVersion": "v1", "items": polls[0] if polls else []}
            body = with_times(json.dumps(found)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Kubernetes)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {"clusters": [cluster], "users": [{"name": "u", "user": {}}], "contexts": [context]}
    (tmp_path / "config").write_text(json.dumps({"current-context": "c", **config}))
    monkeypatch.setattr(runs, "SECONDS_BETWEEN_POLLS", 0)

    def to_the_end(*pods: Pods | dict[str, Any]) -> list[str]:
        polls[:] = [[], *([found] if isinstance(found, dict) else found for found in pods)]
        terminated: list[str] = []

        def get_run(run_id: str) -> Any:
            polls.pop(0)
            parameters = {"run_uri": str(tmp_path), "node_selector": {}}
            return SimpleNamespace(
                run_id=run_id,
                display_name="demo",
                state="RUNNING" if polls else "SUCCEEDED",
                run_details=None,
                runtime_config=SimpleNamespace(parameters=parameters),
            )

        client: Any = SimpleNamespace(get_run=get_run, terminate_run=terminated.append)
        monitor = RunMonitor(
            client, Access("http://kfp", "kubeflow"), KubernetesClient("kubeflow", str(tmp_path / "config"))
        )
        monitor.follow("run", MINUTES, Console(quiet=True))
        return terminated

    yield to_the_end
    server.shutdown()


@pytest.mark.parametrize(
    "polls",
    [
        [gated(31)],
        [gated(3000)],
        [pod(31, **scheduled("False", 31, "SchedulingGated"))],  # another scheduler's gate
        [pod(31, spec=GATES)],
        [starting(120, 0.1)],  # admitted after two hours, and its image is being pulled
        [starting(120, 29)],
        [starting(120, 1, "ErrImagePull")],
        [gated(120), unschedulable(120, None)],  # admitted, and no node found yet
        [gated(120), unschedulable(120, 119)],
        # The gate was removed before we first looked, for example while Kubernetes did not answer.
        [unschedulable(120, 120, labels={"kueue.x-k8s.io/queue-name": "team-a"})],
        [unschedulable(120, 120, generation=2)],
        [unschedulable(120, None)],
        [gated(120), unschedulable(120, None), starting(120, 0)],
        [starting(120, None)],
        [unschedulable(120, 29)],
        [pod(29)],
        [[gated(500, uid="1"), starting(90, 5)]],
    ],
)
def test_time_in_a_queue_is_not_waiting_for_a_node(
    polls: list[Pods | dict[str, Any]], follow: Callable[..., list[str]]
) -> None:
    assert follow(*polls) == []


@pytest.mark.parametrize(
    ("polls", "message"),
    [
        ([unschedulable(31, 31)], "train: its pod waited 31 minutes for a node.*Insufficient memory"),
        ([unschedulable(500, 31)], "for a node"),
        ([starting(500, 31)], "waited 31 minutes on its node to start.*: starting"),
        ([starting(31, 31, "ImagePullBackOff")], "ImagePullBackOff"),
        ([gated(500), starting(500, 31, "ImagePullBackOff")], "on its node"),
        ([pod(31)], "not scheduled"),
        ([[gated(500, uid="2"), unschedulable(31, 31)]], "Insufficient memory"),
    ],
)
def test_a_pod_that_waits_too_long_ends_the_run(
    polls: list[Pods | dict[str, Any]], message: str, follow: Callable[..., list[str]]
) -> None:
    with pytest.raises(ServiceError, match=message):
        follow(*polls)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff"])
def test_a_damaged_record_is_reported_once(
    content: bytes, follow: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outcome.json").write_bytes(content)
    assert follow(pod(1), pod(2)) == []
    assert capsys.readouterr().err.count("outcome.json is damaged") == 1
