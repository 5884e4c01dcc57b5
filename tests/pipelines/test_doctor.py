"""`chatmetrics doctor` without a cluster: skipped checks, registries, KFP's versions, a teacher.

tests/e2e/test_doctor.py runs it on a real cluster.
"""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatmetrics.components.deploy.values import chart_path, default_values
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.image import source_hash
from chatmetrics.pipelines.cluster.kubeflow import Access
from chatmetrics.pipelines.cluster_settings import ClusterSettings
from chatmetrics.pipelines.doctor.cluster_checks import api
from chatmetrics.pipelines.doctor.diagnose import CHECKS, report_line, run_check, summary
from chatmetrics.pipelines.doctor.findings import Finding, combined
from chatmetrics.pipelines.doctor.image_checks import images, ollama_image
from chatmetrics.pipelines.doctor.setup import Setup
from chatmetrics.pipelines.doctor.store_checks import store
from chatmetrics.pipelines.doctor.teacher_checks import teacher
from tests.command import finished_process
from tests.storage import s3

DIGEST = f"sha256:{'1' * 64}"


def run_doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    alone = {"KUBECONFIG": "/none", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
    known = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "KFP_"))}
    return finished_process("doctor", *words, environment={**known, **alone, **environment})


def lines_by_check(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The printed verdict and line of each check."""
    found = [re.fullmatch(r"(\S+) +([\w ]+): (.+)", line) for line in done.stdout.splitlines()]
    return {each[2]: f"{each[1]} {each[3]}" for each in found if each}


@contextmanager
def server(answers: dict[str, tuple[int, dict[str, str], str]]) -> Iterator[str]:
    """An HTTP server: status, headers and body by path; by `token PATH` for requests with the right token."""

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
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()


def setup_without_kubernetes(host: str = "http://127.0.0.1:1", **settings: Any) -> Setup:
    setup = Setup(Access(host, "kubeflow"), ClusterSettings(**settings))
    setup.client_or_error = ServiceError("no access to Kubernetes: none here")
    return setup


def test_without_any_service_each_check_has_its_line_and_the_exit_status_is_5() -> None:
    done = run_doctor("hotel-demo", "--kfp-host", "http://127.0.0.1:1", "--gpu-pool", "A100")
    lines = lines_by_check(done)
    assert list(lines) == list(CHECKS)
    assert lines["api"].startswith("failed Kubeflow Pipelines at http://127.0.0.1:1 does not answer")
    assert "check --kfp-host" in lines["api"]
    assert lines["kubernetes"].startswith("warning no access to Kubernetes")
    for check in ("namespace", "service account", "nodes", "taints", "requests", "quota", "secrets", "helm rights"):
        assert lines[check] == "- skipped: no access to Kubernetes"
    assert lines["store"].startswith("- skipped: this machine has no AWS_ACCESS_KEY_ID")
    assert lines["teacher"] == "ok scripted: the step starts it"
    assert done.stderr == f"error: 1 of {len(CHECKS)} checks failed: api\n"
    assert done.returncode == 5


def test_cluster_settings_are_checked_without_a_recipe(aws: s3.Server) -> None:
    environment = {name: os.environ[name] for name in (*s3.CREDENTIALS, "AWS_ENDPOINT_URL_S3")}
    place = "cluster.store=s3://doctor-nowhere/x"
    done = run_doctor("--kfp-host", "http://127.0.0.1:1", "--set", place, "--gpu-pool", "A100", **environment)
    assert f"the bucket doctor-nowhere does not exist at {aws.endpoint}" in lines_by_check(done)["store"]


def test_a_wrong_recipe_or_pool_is_the_usual_error() -> None:
    assert run_doctor("hotel-dem").returncode == 3
    assert "did you mean V100?" in run_doctor("hotel-demo", "--gpu-pool", "V10").stderr


def test_findings_are_combined_into_one_line_with_the_worst_first() -> None:
    good, bad, worse = Finding("ok", "a exists"), Finding("warning", "b is slow"), Finding("failed", "c is missing")
    assert combined([good, bad, worse]) == Finding("failed", "c is missing; b is slow")
    assert combined([good, Finding("ok", "d too")]) == Finding("ok", "a exists; d too")


def test_lines_are_aligned_and_the_summary_counts_them() -> None:
    findings = {
        "nodes": Finding("ok", "2 nodes"),
        "images": Finding("warning", "a tag"),
        "quota": Finding("skipped", "no RECIPE given"),
    }
    assert [report_line(name, finding) for name, finding in findings.items()] == [
        "ok       nodes: 2 nodes",
        "warning  images: a tag",
        "-        quota: skipped: no RECIPE given",
    ]
    assert summary(findings) == "nothing failed: 1 ok, 1 warning, 1 skipped"
    with pytest.raises(ServiceError, match=r"^1 of 4 checks failed: secrets$"):
        summary({**findings, "secrets": Finding("failed", "there is no x")})


@pytest.mark.parametrize(
    ("tag", "verdict", "line"),
    [
        ("2.14.3", "ok", "Kubeflow Pipelines 2.14.3"),
        ("v3.0.0-rc.1", "ok", "Kubeflow Pipelines v3.0.0-rc.1"),
        ("2.5.0", "failed", "2.14 or newer is needed: upgrade it"),
        ("", "warning", "does not report its version"),
        ("dirty", "warning", "does not report its version"),
    ],
)
def test_the_version_of_kfp(tag: str, verdict: str, line: str) -> None:
    health = json.dumps({"tag_name": tag, "multi_user": True})
    answers: dict[str, tuple[int, dict[str, str], str]] = {
        "/apis/v2beta1/experiments": (200, {"Content-Type": "application/json"}, "{}"),
        "/apis/v2beta1/healthz": (200, {"Content-Type": "application/json"}, health),
    }
    with server(answers) as host:
        setup = setup_without_kubernetes(f"http://{host}")
        finding = run_check(api, setup)
    assert finding.verdict == verdict
    assert line in finding.line
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
            json.dumps({name: {"hash": source_hash(name), "reference": it} for name, it in references.items()})
        )
        monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(recorded))
        finding = run_check(images, setup_without_kubernetes())
    assert finding.verdict == "failed"
    first, *others = finding.line.split("; ")
    assert first == f"convert: {host} has no team/convert@{DIGEST}"
    assert others[0] == "build and push: chatmetrics images build convert --registry REGISTRY --push"
    assert f"train: {host} requires a login" in others
    assert any(other.startswith(f"evaluate: in {host}, but named by a tag") for other in others)
    assert "preprocess" not in finding.line
    assert "merge" not in finding.line


def test_the_image_that_serves_models_is_the_charts_by_digest_or_the_recipes() -> None:
    tag, _, digest = default_values(chart_path())["ollama"]["image"]["tag"].partition("@")
    with server({f"/v2/team/ollama/manifests/{digest}": (200, {}, "")}) as host:

        def check(image: dict[str, str]) -> Finding:
            setup = setup_without_kubernetes()
            values = {"ollama": {"image": {"repository": f"{host}/team/ollama", **image}}}
            setup.recipe = SimpleNamespace(deploy=SimpleNamespace(values=values))  # type: ignore[assignment]
            return run_check(ollama_image, setup)

        assert check({}) == Finding("ok", f"{host}/team/ollama:{tag}@{digest}: in {host}")
        assert check({"tag": "0.1.0"}).line == f"{host}/team/ollama:0.1.0: {host} has no team/ollama:0.1.0"


def test_a_web_page_in_place_of_a_registry_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (200, {"Content-Type": "text/html"}, "<html><title>Log in to GitLab</title>")
    moved = (302, {"Location": "/login"}, "")
    names = ("preprocess", "merge", "convert", "evaluate", "train")
    answers = {f"/v2/team/{name}/manifests/{DIGEST}": moved for name in names} | {"/login": page}
    with server(answers) as host:
        recorded = tmp_path / "digests.json"
        references = {name: f"{host}/team/{name}@{DIGEST}" for name in names}
        recorded.write_text(
            json.dumps({name: {"hash": source_hash(name), "reference": it} for name, it in references.items()})
        )
        monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(recorded))
        finding = run_check(images, setup_without_kubernetes())
    assert finding.verdict == "warning"
    assert f'{host} is not a registry: it sent a login page titled "Log in to GitLab"' in finding.line


def test_an_image_built_without_a_registry_is_not_searched_on_the_internet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(tmp_path / "none.json"))
    finding = run_check(images, setup_without_kubernetes())
    assert finding.verdict == "skipped"
    assert finding.line.endswith("in no registry, and the images on the nodes are not known")


def test_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"/v1/models": (401, {}, ""), "token /v1/models": (200, {}, '{"data": [{"id": "large"}]}')}
    with server(models) as host:

        def check_teacher(model: str, url: str = f"http://{host}/v1") -> Finding:
            setup = setup_without_kubernetes()
            distill = DistillSettings(base_url=url, model=model, api_key_variable="TEACHER_KEY")
            setup.recipe = SimpleNamespace(distill=distill)  # type: ignore[assignment]
            return run_check(teacher, setup)

        monkeypatch.delenv("TEACHER_KEY", raising=False)
        assert check_teacher("large").line == f"http://{host}/v1/models: it requires a key: set TEACHER_KEY (401)"
        monkeypatch.setenv("TEACHER_KEY", "wrong")
        assert check_teacher("large").line == f"http://{host}/v1/models: the key in TEACHER_KEY is refused (401)"
        monkeypatch.setenv("TEACHER_KEY", "right")
        assert check_teacher("large") == Finding("ok", f"large at http://{host}/v1")
        assert check_teacher("huge") == Finding("failed", f"http://{host}/v1/models has no huge; it has large")
        assert "is base_url right?" in check_teacher("large", f"http://{host}").line
    assert "does not answer (ConnectError)" in check_teacher("large", "http://127.0.0.1:1").line
    # A name that only pods can resolve.
    assert check_teacher("large", "http://vllm.models.svc/v1").verdict == "skipped"
    assert check_teacher("", "scripted") == Finding("ok", "scripted: the step starts it")


def test_the_store_is_checked_with_what_runs_use(
    aws: s3.Server, bucket: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    setup = setup_without_kubernetes(store=f"s3://{bucket}/x")
    assert run_check(store, setup) == Finding(
        "ok", f"s3://{bucket}/x written, read back, deleted, in one piece and in parts"
    )

    def refused(method: str, path: str, headers: Message) -> s3.Answer | None:
        if method == "GET" and "uploads" in path:
            return s3.s3_error(403, "AccessDenied")
        del headers["If-None-Match"]  # the store ignores it
        return None

    def stripped(method: str, path: str, answer: s3.Answer) -> s3.Answer:
        kept = {name: value for name, value in answer[1].items() if not name.lower().startswith("x-amz-meta-")}
        return answer[0], kept, answer[2]

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.OtherStore(aws.endpoint, answer=refused, change=stripped).endpoint)
    finding = run_check(store, setup)
    assert finding.verdict == "warning"
    for words in ("does not keep metadata", "ignores If-None-Match", "cannot be listed (AccessDenied)"):
        assert words in finding.line

    def no_uploads(method: str, path: str, headers: Message) -> s3.Answer | None:
        return s3.s3_error(403, "AccessDenied") if method == "POST" and "uploads" in path else None

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.OtherStore(aws.endpoint, answer=no_uploads).endpoint)
    finding = run_check(store, setup)
    assert finding.verdict == "failed"
    assert "AccessDenied" in finding.line
    assert "Contents" not in aws.client.list_objects_v2(Bucket=bucket), "something was left in the store"
