"""Commands whose service is not there, but something else that answers: it is named in one line, in every command."""

import asyncio
import http.server
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher.client import Teacher
from chatmetrics.components.distill.teacher.failures import UnavailableError
from chatmetrics.components.distill.teacher.request import Request
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.openai_chat import OpenAIChat
from chatmetrics.components.serve.smoke import smoke
from chatmetrics.pipelines.base_sizes import base_sizes
from chatmetrics.pipelines.cluster import runs
from chatmetrics.pipelines.cluster.kubeflow import Access, AccessError, api_errors, connect, find_run
from chatmetrics.pipelines.cluster_settings import ClusterSettings
from chatmetrics.pipelines.doctor.diagnose import CHECKS, run_check
from chatmetrics.pipelines.doctor.setup import Setup
from chatmetrics.pipelines.doctor.teacher_checks import teacher
from chatmetrics.pipelines.recipe import load_recipe
from tests.command import finished_process

Answer = tuple[int, dict[str, str], bytes]
HTML = {"Content-Type": "text/html; charset=utf-8"}
LOGIN = b'<html><head><title>Log in to Example</title></head><form><input name="p" type="password"></form></html>'
IMPOSTORS: dict[str, tuple[Answer, str]] = {
    "web page": (
        (200, HTML, b"<!doctype html><title>MinIO &amp; Console\n</title>"),
        'a web page titled "MinIO & Console"',
    ),
    "login page": ((200, HTML, LOGIN), 'a login page titled "Log in to Example"'),
    "XHTML": (
        (200, {"Content-Type": "application/xhtml+xml"}, b'<?xml version="1.0"?><!DOCTYPE html><html><title>X</title>'),
        'a web page titled "X"',
    ),
    "https": ((301, {"Location": "https://host.example/secret?token=abc"}, b""), "a redirect to https://host.example"),
    "login": (
        (302, {"Location": "https://sso.example/oauth2/start"}, b""),
        "a redirect to a login page at https://sso",
    ),
    "own path": ((307, {"Location": "/somewhere"}, b""), "a redirect to another path of the same host"),
    "other JSON": ((200, {}, b'{"hello": 1, "world": 2}'), "JSON without the expected fields (it has hello, world)"),
    "list": ((200, {}, b"[1, 2]"), "JSON that is a list instead of an object"),
    "value": ((200, {}, b'"yes"'), "JSON that is a single value"),
    "empty": ((200, {}, b""), "an empty answer"),
    "binary": ((200, {"Content-Type": "image/png"}, b"\x89PNG\r\n\0\xff\xfe"), "binary data (image/png)"),
    "cut off": ((200, {"Content-Type": "application/json"}, b'{"runs": [{"run_'), "JSON that is cut off"),
    "deep": ((200, {}, b"[" * 100_000), "JSON that is cut off"),
    "text": ((200, {}, b"It works!"), "plain text"),
    "odd charset": ((200, {"Content-Type": "text/html; charset=nothing"}, b"<html>\xff"), "a web page without a title"),
    "502": ((404, HTML, b"<html><title>404 Not Found</title>"), 'a web page titled "404 Not Found" (status 404)'),
}


@contextmanager
def server(answers: dict[str, Answer], default: Answer) -> Iterator[str]:
    """A server that answers by path, without the query."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = answers.get(self.path.partition("?")[0], default)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()


def _kubernetes(endpoint: str, folder: Path) -> KubernetesClient:
    cluster, context = {"name": "c", "cluster": {"server": endpoint}}, {"cluster": "c", "user": "u"}
    config = {"clusters": [cluster], "users": [{"name": "u", "user": {"token": "t"}}], "current-context": "x"}
    (folder / "config").write_text(json.dumps({**config, "contexts": [{"name": "x", "context": context}]}))
    return KubernetesClient("default", str(folder / "config"))


def _fails(action: object, words: str) -> str:
    with pytest.raises(ServiceError) as caught:
        action()  # type: ignore[operator]
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message
    assert "token=abc" not in message
    return message


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_an_impostor_of_a_model_or_of_kubernetes_is_named(kind: str, tmp_path: Path) -> None:
    answer, words = IMPOSTORS[kind]
    with server({}, answer) as endpoint:
        _fails(lambda: Client(endpoint), words)
        _fails(lambda: smoke(endpoint, ""), words)
        kubernetes = _kubernetes(endpoint, tmp_path)
        _fails(lambda: kubernetes.pods("a=b"), words)
        _fails(lambda: kubernetes.call(kubernetes.core.read_namespace, "default"), words)
        setup = Setup(Access(endpoint, "kubeflow"), ClusterSettings())
        distill = DistillSettings(base_url=f"{endpoint}/v1", model="m", api_key_variable="NO_KEY")
        setup.recipe = SimpleNamespace(distill=distill)  # type: ignore[assignment]
        finding = run_check(teacher, setup)
        assert finding.verdict == "failed"
        assert words in finding.line


@pytest.mark.parametrize("kind", [kind for kind in IMPOSTORS if kind not in ("https", "login", "own path")])
def test_an_impostor_of_a_teacher_is_named(kind: str) -> None:
    answer, words = IMPOSTORS[kind]
    with server({}, answer) as endpoint:
        if answer[0] == 200 and "Content-Type" in answer[1]:
            _fails(lambda: OpenAIChat(f"{endpoint}/v1", "m").ask("", "", "?"), words)
        if answer[0] == 200:
            for stream in (False, True):
                if stream and "Content-Type" not in answer[1]:
                    continue
                with pytest.raises(UnavailableError) as caught:
                    asyncio.run(_ask_teacher(f"{endpoint}/v1", stream))
                assert words in caught.value.reason


async def _ask_teacher(endpoint: str, stream: bool) -> None:
    settings = DistillSettings(base_url=endpoint, model="m", request_seconds=5, stream=stream)
    async with Teacher(endpoint, settings) as client:
        await client.ask(Request((("user", "?"),), 0, 0.0, 1))


@pytest.mark.parametrize("host", ["http://a..b", f"http://{'x' * 70}.example", "http://[::1", "http://\u00e9\u200b.de"])
def test_an_address_that_is_no_host_is_one_line(host: str, tmp_path: Path) -> None:
    for call in (
        lambda: Client(host),
        lambda: smoke(host, ""),
        lambda: OpenAIChat(host, "m").ask("", "", "?"),
        lambda: connect(Access(host, "ns")),
        lambda: connect(Access(host, "ns", dex_username="u", dex_password="p")),
    ):
        _fails(call, host.split("//")[1][:5])


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_an_impostor_of_the_hub_is_a_note(
    kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answer, words = IMPOSTORS[kind]
    if answer[0] != 200 or kind == "other JSON":
        return
    with server({}, answer) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert base_sizes(load_recipe("spider-7b-schema")).layers == 28
    assert words in capfd.readouterr().err


def test_an_impostor_that_takes_over_after_the_first_answer(tmp_path: Path) -> None:
    """Ollama's version and models are right, and then something else answers, such as a gateway without a session."""
    models = {
        "/api/version": (200, {}, b'{"version": "1"}'),
        "/api/tags": (200, {}, b'{"models": [{"name": "hotel:1"}]}'),
    }
    for answer, words in IMPOSTORS.values():
        with server(models, answer) as endpoint:
            client = Client(endpoint)
            _fails(lambda client=client: client.count_tokens("SELECT"), words)
            with pytest.raises(ServiceError):
                client.generate("SELECT")


HEALTHY: dict[str, Answer] = {
    "/apis/v2beta1/healthz": (200, {}, b'{"tag_name": "2.14.3", "multi_user": true}'),
    "/apis/v2beta1/experiments": (200, {}, b"{}"),
}


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_an_impostor_of_kfp_is_named(kind: str) -> None:
    answer, words = IMPOSTORS[kind]
    run_id = "01234567-89ab-cdef-0123-456789abcdef"
    with server({}, answer) as host:
        _fails(lambda: connect(Access(host, "ns")), words)
    with server(HEALTHY, answer) as host:
        access = Access(host, "ns")
        client = connect(access)
        for call in (
            lambda: find_run(client, access, run_id),
            lambda: find_run(client, access, "a name"),
            lambda: runs.RunMonitor(client, access, None).view(run_id),
        ):
            _fails(call, words)
        with pytest.raises(ServiceError), api_errors(access):
            client.list_recurring_runs(namespace="ns")


def test_an_expired_session_ends_the_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: pytest.fail("it waited"))
    for kind in ("login page", "login"):
        with server(HEALTHY, IMPOSTORS[kind][0]) as host:
            access = Access(host, "ns")
            monitor = runs.RunMonitor(connect(access), access, None)
            with pytest.raises(AccessError, match=r"access denied, it sent a .*KFP_TOKEN"):
                monitor.follow("1", None, Console(file=StringIO()))


@pytest.mark.parametrize("body", [b"{}", b'{"total_size": 0}', b'{"runs": [], "next_page_token": ""}'])
def test_an_empty_list_of_kfp_is_no_impostor(body: bytes) -> None:
    with server({**HEALTHY, "/apis/v2beta1/runs": (200, {}, body)}, (404, {}, b"")) as host:
        assert not connect(Access(host, "ns")).list_runs(namespace="ns").runs


def test_commands_print_one_line_and_doctor_runs_all_checks(tmp_path: Path) -> None:
    known = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "KFP_"))}
    sqlite3.connect(tmp_path / "hotel.sqlite").execute("CREATE TABLE hotel (id)").connection.close()
    with server({}, IMPOSTORS["web page"][0]) as host:
        (tmp_path / "config").write_text("{}")
        _kubernetes(host, tmp_path)
        alone = {"AWS_EC2_METADATA_DISABLED": "true", "KUBECONFIG": str(tmp_path / "config"), "AWS_MAX_ATTEMPTS": "1"}
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL_S3": host}
        environment = {**known, **alone, **keys}
        for words in (
            ("list", "--kfp-host", host),
            ("ask", "How many?", "--db", str(tmp_path / "hotel.sqlite"), "--endpoint", host),
        ):
            done = finished_process(*words, environment=environment)
            assert done.returncode == 5
            assert done.stderr.count("\n") == 1
            assert 'a web page titled "MinIO & Console"' in done.stderr
        done = finished_process("doctor", "hotel-demo", "--kfp-host", host, environment=environment)
    assert done.returncode == 5
    lines = done.stdout.splitlines()
    for name in CHECKS:
        assert any(f" {name}: " in line for line in lines), name
    for name in ("api", "kubernetes", "store"):
        assert any(f" {name}: " in line and "web page titled" in line for line in lines), name


def test_an_error_of_a_library_in_a_check_is_a_finding() -> None:
    def broken(setup: Setup) -> None:
        raise KeyError("spec")

    finding = run_check(broken, Setup(Access("http://127.0.0.1:1", "ns"), ClusterSettings()))  # type: ignore[arg-type]
    assert finding.verdict == "failed"
    assert "the check itself failed (KeyError: 'spec')" in finding.line
