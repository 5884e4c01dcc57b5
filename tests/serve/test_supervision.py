"""The supervisor of a pod notices an Ollama that hangs, whichever of its answers is missing."""

import os
import signal
import threading
import time
from email.message import Message
from pathlib import Path

from tests.serve.pods import SQL, RunningPod, needs_ollama, published
from tests.serve.test_pod import children_of
from tests.storage.s3 import Answer, OtherStore


@needs_ollama
def test_a_pod_is_not_ready_while_ollama_does_not_list_its_models(tmp_path: Path) -> None:
    """Ollama 0.34.0 keeps GET /api/ps waiting while a runner does not respond, but answers GET /api/version."""
    pod = RunningPod(tmp_path / "pod", [{"name": "hotel", "uri": published(tmp_path, "1")}], {"requestSeconds": 2})
    assert pod.fetch().returncode == 0
    hangs, over = threading.Event(), threading.Event()

    def wait(method: str, path: str, headers: Message) -> None:
        if hangs.is_set() and path == "/api/ps":
            over.wait()

    def whole(method: str, path: str, answer: Answer) -> Answer:
        status, headers, content = answer
        return status, {name: value for name, value in headers.items() if name != "Transfer-Encoding"}, content

    with pod.ollama():
        between = OtherStore(f"http://127.0.0.1:{pod.ollama_port}", wait, whole)
        pod.ollama_port = int(between.endpoint.rpartition(":")[2])  # for the proxy
        with pod.proxy() as process:
            pod.wait(200, process)
            hangs.set()
            until = time.monotonic() + 45
            try:
                while pod.readiness() == 200:
                    assert time.monotonic() < until, "the pod has been ready for 45 s although Ollama hangs"
                    time.sleep(0.5)
            finally:
                over.set()


@needs_ollama
def test_a_pod_notices_that_its_second_model_hangs(tmp_path: Path) -> None:
    models = [
        {"name": "first", "uri": published(tmp_path, "1", name="first")},
        {"name": "second", "uri": published(tmp_path, "1", [*SQL, ","], name="second"), "threshold": 0},
    ]
    pod = RunningPod(tmp_path / "pod", models, {"requestSeconds": 2})
    assert pod.fetch().returncode == 0

    def status(model: str) -> int:
        return pod.post("/api/generate", {"model": model, "prompt": "x", "stream": False}).status_code

    with pod.ollama() as ollama, pod.proxy() as process:
        pod.wait(200, process)
        runner = max(children_of(ollama.pid))  # the second model's, which was started last
        os.kill(runner, signal.SIGSTOP)
        try:
            until = time.monotonic() + 45
            while pod.readiness() == 200 and status("second") == 504:
                assert status("first") in (200, 503)  # 503 once the pod is not ready
                assert time.monotonic() < until, "the pod has been ready for 45 s although a model hangs"
        finally:
            if Path(f"/proc/{runner}").exists():
                os.kill(runner, signal.SIGCONT)
