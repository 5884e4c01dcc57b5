"""`chatmetrics doctor` without a cluster: what depends on what, registries, KFP's versions, a teacher.

What it says of a real cluster is in tests/e2e/test_doctor.py.
"""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.image import source_hash
from chatmetrics.pipelines.cluster.kubeflow import Access
from chatmetrics.pipelines.cluster_settings import ClusterSettings
from chatmetrics.pipelines.doctor import diagnose as doctor
from chatmetrics.pipelines.doctor.cluster_checks import Said, Setup, together
from chatmetrics.pipelines.doctor.diagnose import Finding
from tests.storage import s3

PROGRAM = "from chatmetrics.pipelines.cli.main import main; main()"
DIGEST = f"sha256:{'1' * 64}"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    alone = {"KUBECONFIG": "/none", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
    known = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "KFP_"))}
    command = [sys.executable, "-c", PROGRAM, "doctor", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**known, **alone, **environment})


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What was said by name, the verdict first."""
    found = [re.fullmatch(r"(\S+) +([\w ]+): (.+)", line) for line in done.stdout.splitlines()]
    return {each[2]: f"{each[1]} {each[3]}" for each in found if each}


@contextmanager
def server(answers: dict[str, tuple[int, dict[str, str], str]]) -> Iterator[str]:
    """An HTTP server that answers paths without their query; with a right token, those that begin with `token `."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            named = f"token {path}" if self.headers.get("Authorization") == "Bearer right" else path
            status, headers, body = answers.get(named, answers.get(path, (404, {}, "")))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body.encode())

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()


def set_up(host: str = "http://127.0.0.1:1", **settings: Any) -> Setup:
    setup = Setup(Access(host, "kubeflow"), ClusterSettings(**settings))
    setup.kubernetes = ServiceError("no access to Kubernetes: none here")
    return setup


def test_where_nothing_is_there_each_check_has_its_line_and_the_exit_status_is_5() -> None:
    done = run("hotel-demo", "--kfp-host", "http://127.0.0.1:1", "--gpu-pool", "A100")
    said = lines(done)
    assert list(said) == list(doctor.CHECKS)
    assert said["api"].startswith("failed Kubeflow Pipelines at http://127.0.0.1:1 does not answer")
    assert "check --kfp-host" in said["api"]
    assert said["kubernetes"].startswith("warning no access to Kubernetes")
    for check in ("namespace", "service account", "nodes", "taints", "requests", "quota", "secrets", "helm rights"):
        assert said[check] == "- skipped: no access to Kubernetes"
    assert said["store"].startswith("- skipped: this machine has no AWS_ACCESS_KEY_ID")
    assert said["teacher"] == "ok scripted: the step brings it"
    assert done.stderr == f"error: 1 of {len(doctor.CHECKS)} checks failed: api\n"
    assert done.returncode == 5


def test_settings_of_a_cluster_can_be_looked_at_without_a_recipe(aws: s3.Server) -> None:
    environment = {name: os.environ[name] for name in (*s3.CREDENTIALS, "AWS_ENDPOINT_URL_S3")}
    store = "cluster.store=s3://doctor-nowhere/x"
    done = run("--kfp-host", "http://127.0.0.1:1", "--set", store, "--gpu-pool", "A100", **environment)
    assert f"the bucket doctor-nowhere does not exist at {aws.endpoint}" in lines(done)["store"]


def test_a_wrong_recipe_or_pool_is_the_usual_error() -> None:
    assert run("hotel-dem").returncode == 3
    assert "did you mean V100?" in run("hotel-demo", "--gpu-pool", "V10").stderr


def test_several_parts_make_one_line_with_the_worst_first() -> None:
    good, bad, worse = Said("ok", "a is there"), Said("warning", "b is slow"), Said("failed", "c is missing")
    assert together([good, bad, worse]) == Said("failed", "c is missing; b is slow")
    assert together([good, Said("ok", "d too")]) == Said("ok", "a is there; d too")


def test_lines_are_aligned_and_the_last_one_counts() -> None:
    findings = [
        Finding("nodes", "ok", "2 nodes"),
        Finding("images", "warning", "a tag"),
        Finding("quota", "skipped", "no RECIPE given"),
    ]
    assert [doctor.line(finding) for finding in findings] == [
        "ok       nodes: 2 nodes",
        "warning  images: a tag",
        "-        quota: skipped: no RECIPE given",
    ]
    assert doctor.summary(findings) == "nothing failed: 1 ok, 1 warning, 1 skipped"
    with pytest.raises(ServiceError, match=r"^1 of 4 checks failed: secrets$"):
        doctor.summary([*findings, Finding("secrets", "failed", "there is no x")])


@pytest.mark.parametrize(
    ("tag", "verdict", "line"),
    [
        ("2.14.3", "ok", "Kubeflow Pipelines 2.14.3"),
        ("v3.0.0-rc.1", "ok", "Kubeflow Pipelines v3.0.0-rc.1"),
        ("2.5.0", "failed", "2.14 or newer is needed: upgrade it"),
        ("", "warning", "does not tell its version"),
        ("dirty", "warning", "does not tell its version"),
    ],
)
def test_the_version_of_kfp(tag: str, verdict: str, line: str) -> None:
    health = json.dumps({"tag_name": tag, "multi_user": True})
    answers: dict[str, tuple[int, dict[str, str], str]] = {
        "/apis/v2beta1/experiments": (200, {"Content-Type": "application/json"}, "{}"),
        "/apis/v2beta1/healthz": (200, {"Content-Type": "application/json"}, health),
    }
    with server(answers) as host:
        setup = set_up(f"http://{host}")
        said = doctor.look(doctor.api, setup)
    assert said.verdict == verdict
    assert line in said.line
    assert setup.account == "default-editor"


def test_images_in_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, tuple[int, dict[str, str], str]] = {}
    with server(answers) as host:
        wants = f'Bearer realm="http://{host}/token",service="here",scope="repository:team/merge:pull"'
        answers |= {
            f"/v2/team/preprocess/manifests/{DIGEST}": (200, {}, ""),
            f"/v2/team/merge/manifests/{DIGEST}": (401, {"WWW-Authenticate": wants}, ""),
            f"token /v2/team/merge/manifests/{DIGEST}": (200, {}, ""),
            "/token": (200, {}, '{"token": "right"}'),
            "/v2/team/evaluate/manifests/1": (200, {}, ""),
            f"/v2/team/train/manifests/{DIGEST}": (401, {"WWW-Authenticate": "Basic"}, ""),
        }
        references = {
            "preprocess": f"{host}/team/preprocess@{DIGEST}",
            "merge": f"{host}/team/merge:1@{DIGEST}",
            "convert": f"{host}/team/convert@{DIGEST}",
            "evaluate": f"{host}/team/evaluate:1",
            "train": f"{host}/team/train@{DIGEST}",
        }
        recorded = tmp_path / "digests.json"
        recorded.write_text(
            json.dumps({name: {"hash": source_hash(name), "reference": said} for name, said in references.items()})
        )
        monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(recorded))
        said = doctor.look(doctor.images, set_up())
    assert said.verdict == "failed"
    first, *others = said.line.split("; ")
    assert first == f"convert: {host} has no team/convert@{DIGEST}"
    assert others[0] == "build and push: chatmetrics images build convert --registry REGISTRY --push"
    assert f"train: {host} wants a login" in others
    assert any(other.startswith(f"evaluate: in {host}, but named by a tag") for other in others)
    assert "preprocess" not in said.line
    assert "merge" not in said.line


def test_an_image_that_only_this_machine_may_have_is_not_looked_for_on_the_internet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(tmp_path / "none.json"))
    said = doctor.look(doctor.images, set_up())
    assert said.verdict == "skipped"
    assert said.line.endswith("in no registry, and what nodes hold is not seen")


def test_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"/v1/models": (401, {}, ""), "token /v1/models": (200, {}, '{"data": [{"id": "large"}]}')}
    with server(models) as host:

        def said(model: str, url: str = f"http://{host}/v1") -> Said:
            setup = set_up()
            teacher = DistillSettings(base_url=url, model=model, key_variable="TEACHER_KEY")
            setup.recipe = SimpleNamespace(distill=teacher)  # type: ignore[assignment]
            return doctor.look(doctor.teacher, setup)

        monkeypatch.delenv("TEACHER_KEY", raising=False)
        assert said("large").line == f"http://{host}/v1/models: it wants a key: set TEACHER_KEY (401)"
        monkeypatch.setenv("TEACHER_KEY", "wrong")
        assert said("large").line == f"http://{host}/v1/models: the key in TEACHER_KEY is refused (401)"
        monkeypatch.setenv("TEACHER_KEY", "right")
        assert said("large") == Said("ok", f"large at http://{host}/v1")
        assert said("huge") == Said("failed", f"http://{host}/v1/models has no huge; it has large")
        assert "is base_url right?" in said("large", f"http://{host}").line
    assert "does not answer (ConnectError)" in said("large", "http://127.0.0.1:1").line
    # A name that only pods know.
    assert said("large", "http://vllm.models.svc/v1").verdict == "skipped"
    assert said("", "scripted") == Said("ok", "scripted: the step brings it")
