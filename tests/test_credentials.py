"""Secrets with characters that no header allows: used or refused in the same way everywhere, and shown nowhere."""

import asyncio
import json
import logging
import os
import sqlite3
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, quote_plus

import pytest

from chatmetrics.components.credentials import checked_secret, read_secret, read_secret_file, tls_context
from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher.client import Teacher
from chatmetrics.components.distill.teacher.request import Request
from chatmetrics.components.errors import InputError, ServiceError, UserError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.openai_chat import OpenAIChat
from chatmetrics.components.redaction import hide, one_line, redacted
from chatmetrics.components.serve.pod import bearer_tokens
from chatmetrics.components.serve.pod.bearer_tokens import BearerTokens
from chatmetrics.components.serve.smoke import smoke
from chatmetrics.components.storage.store import open_store
from chatmetrics.pipelines.base_sizes import base_sizes
from chatmetrics.pipelines.cluster.kubeflow import Access, connect
from chatmetrics.pipelines.cluster_settings import ClusterSettings
from chatmetrics.pipelines.doctor.diagnose import report_line, run_check
from chatmetrics.pipelines.doctor.setup import Setup
from chatmetrics.pipelines.doctor.teacher_checks import teacher
from chatmetrics.pipelines.recipe import load_recipe
from tests.command import finished_process

PARTS = ("hunter2-Xyzzy", "Plugh-0451-Rosebud")
SECRET = "".join(PARTS)
TRIMMED = {
    "line break": f"{SECRET}\n",
    "CRLF": f"{SECRET}\r\n",
    "several line breaks": f"\n{SECRET}\n\n",
    "spaces": f"  {SECRET} \t",
    "full-width space": f"{SECRET}\u3000",
    "no-break space": f"\u00a0{SECRET}",
}
REFUSED = {
    "inner line break": f"{PARTS[0]}\n{PARTS[1]}",
    "inner CRLF": f"{PARTS[0]}\r\n{PARTS[1]}",
    "inner tab": f"{PARTS[0]}\t{PARTS[1]}",
    "escape": f"{SECRET}\x1b[0m",
    "delete": f"{SECRET}\x7f",
    "accent": f"{SECRET}\u00e9",
    "Chinese": f"{PARTS[0]}\u5bc6\u7801{PARTS[1]}",
    "full-width letter": f"\uff53{SECRET}",
    "zero width space": f"{PARTS[0]}\u200b{PARTS[1]}",
    "byte order mark": f"\ufeff{SECRET}",
    "typographic quote": f"\u201c{SECRET}\u201d",
    "byte that is not UTF-8": f"{SECRET}\udcff",
    "emoji": f"{SECRET}\U0001f511",
}
SENT = {"plain": SECRET, "quotes": f'"{SECRET}"', "inner space": " ".join(PARTS)}
ABSENT = {"empty": "", "only spaces": "  ", "a line break": "\n"}
ALL = TRIMMED | REFUSED | SENT | ABSENT
HIDDEN_PARTS = (*PARTS, "hunter2", "Rosebud")


class Echo(BaseHTTPRequestHandler):
    """Denies every request and repeats its headers in its error, as some services do."""

    received: list[str]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        given = self.headers.get("Authorization", "") or self.headers.get("Cookie", "")
        self.received.append(given)
        body = json.dumps({"error": {"message": f"unknown: {given}"}, "message": f"unknown: {given}"}).encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[tuple[str, list[str]]]:
    handler = type("Recorder", (Echo,), {"received": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.received
        server.shutdown()


def _kubernetes(endpoint: str, secret: str, folder: Path) -> None:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": endpoint}}],
        "users": [{"name": "u", "user": {"token": secret}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "config").write_text(json.dumps(config))
    kubernetes = KubernetesClient("default", str(folder / "config"))
    kubernetes.call(kubernetes.core.list_namespace)


async def _ask_teacher(endpoint: str) -> None:
    settings = DistillSettings(base_url=endpoint, model="m", api_key_variable="TEACHER_API_KEY", request_seconds=5)
    async with Teacher(endpoint, settings) as client:
        await client.ask(Request((("user", "?"),), 0, 0.0, 1))


def _doctor(endpoint: str) -> None:
    setup = Setup(Access(endpoint, "kubeflow"), ClusterSettings())
    distill = DistillSettings(base_url=endpoint, model="m", api_key_variable="TEACHER_API_KEY")
    setup.recipe = SimpleNamespace(distill=distill)  # type: ignore[assignment]
    print(report_line("teacher", run_check(teacher, setup)))


def _hub(endpoint: str) -> None:
    base_sizes(load_recipe("spider-7b-schema"))


def _s3(endpoint: str) -> None:
    open_store("s3://bucket/prefix").read_bytes("key")


# Every place that sends a secret: the variable it is read from (empty: an argument), and the call.
USERS: dict[str, tuple[str, Callable[[str, str, Path], None]]] = {
    "ask": ("", lambda endpoint, secret, _: Client(endpoint, token=secret) and None),
    "smoke test": ("", lambda endpoint, secret, _: smoke(endpoint, secret)),
    "openai": ("OPENAI_API_KEY", lambda endpoint, *_: OpenAIChat(f"{endpoint}/v1", "m").ask("", "", "?") and None),
    "teacher": ("TEACHER_API_KEY", lambda endpoint, *_: asyncio.run(_ask_teacher(endpoint))),
    "doctor": ("TEACHER_API_KEY", lambda endpoint, *_: _doctor(endpoint)),
    "KFP token": ("", lambda endpoint, secret, _: connect(Access(endpoint, "ns", token=secret)) and None),
    "KFP cookies": ("", lambda endpoint, secret, _: connect(Access(endpoint, "ns", cookies=secret)) and None),
    "Hub": ("HF_TOKEN", lambda endpoint, *_: _hub(endpoint)),
    "kubeconfig": ("", _kubernetes),
    "S3 access key": ("AWS_ACCESS_KEY_ID", lambda endpoint, *_: _s3(endpoint)),
    "S3 secret key": ("AWS_SECRET_ACCESS_KEY", lambda endpoint, *_: _s3(endpoint)),
    "S3 session token": ("AWS_SESSION_TOKEN", lambda endpoint, *_: _s3(endpoint)),
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("user", USERS)
def test_a_secret_is_in_no_message(
    user: str,
    kind: str,
    echo: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint, received = echo
    name, use = USERS[user]
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "another-key-of-the-test")
    for key, value in (("AWS_ENDPOINT_URL_S3", endpoint), ("HF_ENDPOINT", endpoint), ("AWS_MAX_ATTEMPTS", "1")):
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    if name:
        monkeypatch.setenv(name, ALL[kind])
    shown = ""
    with caplog.at_level(logging.INFO):
        try:
            use(endpoint, ALL[kind], tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
            shown = "".join(traceback.format_exception(error))
            if kind in REFUSED:
                assert isinstance(error, InputError), error
                assert name in str(error)
                assert "character" in str(error)
    output = shown + "".join(capfd.readouterr()) + caplog.text
    for part in HIDDEN_PARTS:
        assert part not in output
    if kind in REFUSED:
        assert not received, "it was sent"
        assert "which an HTTP header cannot hold" in output
    elif kind in TRIMMED | SENT:
        assert received, "it was not sent"
        if user not in ("S3 secret key",) and kind != "quotes":
            expected = ALL[kind].strip()
            assert any(expected in each for each in received) or user.startswith("S3")


@pytest.mark.parametrize("kind", ALL)
def test_proxy_and_client_agree_about_a_token(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bearer_tokens.time, "monotonic", lambda: 1e9)
    (tmp_path / "smoke").write_bytes(ALL[kind].encode(errors="surrogateescape"))
    (tmp_path / "other").write_text("another-token-of-the-test")
    tokens = BearerTokens(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert tokens.client_of("Bearer another-token-of-the-test") == "other"
    monkeypatch.setenv("TOKEN_OF_TEST", ALL[kind])
    try:
        sent = read_secret("TOKEN_OF_TEST")
    except InputError:
        sent = ""
    if sent:
        assert kind in TRIMMED | SENT
        assert tokens.client_of(f"Bearer {sent}") == "smoke"
        assert not caplog.records
    else:
        assert kind in REFUSED | ABSENT
        raw = f"Bearer {ALL[kind]}".encode(errors="surrogateescape").decode("latin-1")
        assert tokens.client_of(raw) == ""
        assert f"{tmp_path / 'smoke'}" in caplog.text
        assert "requests of this client are refused" in caplog.text
    assert not any(part in caplog.text for part in HIDDEN_PARTS)


def test_a_secret_with_nul_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\0" + SECRET.encode())
    with pytest.raises(InputError, match=r"token: character 1 is U\+0000"):
        read_secret_file(tmp_path / "token")
    with pytest.raises(InputError, match="none: the secret cannot be read"):
        read_secret_file(tmp_path / "none")


def test_a_password_may_have_any_letter_but_no_control_character() -> None:
    assert checked_secret("pässwörd 密码\n", "P", in_header=False) == "pässwörd 密码"
    with pytest.raises(InputError, match="P: character 5 is a tab, which a login cannot hold"):
        checked_secret("pass\tword", "P", in_header=False)


COMMANDS = {
    "ask": (["ask", "How many?", "--db", "{db}", "--endpoint", "{endpoint}"], "CHATMETRICS_TOKEN"),
    "list": (["list", "--kfp-host", "{endpoint}"], "KFP_TOKEN"),
    "status": (["status", "run", "--kfp-host", "{endpoint}"], "KFP_COOKIES"),
    "doctor": (["doctor", "--kfp-host", "{endpoint}"], "KFP_TOKEN"),
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ask", "line break"),
        ("ask", "inner line break"),
        ("list", "Chinese"),
        ("status", "inner tab"),
        ("doctor", "accent"),
    ],
)
def test_no_command_shows_a_secret(command: str, kind: str, echo: tuple[str, list[str]], tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "hotel.sqlite").execute("CREATE TABLE hotel (id)").connection.close()
    words, name = COMMANDS[command]
    places = {"db": tmp_path / "hotel.sqlite", "endpoint": echo[0]}
    known = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "KFP_"))}
    alone = {"KUBECONFIG": "/none", "AWS_EC2_METADATA_DISABLED": "true", "TMPDIR": str(tmp_path)}
    done = finished_process(
        *(word.format(**places) for word in words), environment={**known, **alone, name: ALL[kind]}, folder=tmp_path
    )
    assert done.returncode == (3 if kind in REFUSED and command != "doctor" else 5), done.stderr
    written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    for part in HIDDEN_PARTS:
        assert part not in done.stdout + done.stderr + written
    if kind in REFUSED:
        assert f"{name}" in done.stdout + done.stderr
        assert "error: unexpected" not in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pass-word@host:9000/x", "http://[hidden]@host:9000/x"),
        ("https://user:p@ss:w@rd@host", "https://[hidden]@host"),
        ("https://user:pa/ss?w#rd@host/x", "https://[hidden]@host/x"),
        ("postgresql+psycopg://reader:p%40ss@db/{db_id}", "postgresql+psycopg://[hidden]@db/{db_id}"),
        ("https://token-only@host", "https://[hidden]@host"),
        ("see https://host:8080/a@b", "see https://host:8080/a@b"),
        ("s3://bucket/a@b is damaged", "s3://bucket/a@b is damaged"),
        ("GET /x?X-Amz-Signature=abc123&y=1", "GET /x?X-Amz-Signature=[hidden]&y=1"),
        ("https://h/?access_token=abc&n=2", "https://h/?access_token=[hidden]&n=2"),
        (f"key {SECRET}!", "key [hidden]!"),
        (f"b'Bearer {SECRET}'", "b'Bearer [hidden]'"),
    ],
)
def test_what_is_hidden(text: str, shown: str) -> None:
    hide(SECRET)
    assert redacted(text) == shown
    assert str(ServiceError(text)) == shown


def test_every_form_of_a_secret_is_hidden() -> None:
    odd = "p/w+ört 1\n2&3=4"
    hide(odd)
    for form in (odd, quote(odd), quote(odd, safe=""), quote_plus(odd), repr(odd), repr(odd.encode()), json.dumps(odd)):
        assert "rt" not in redacted(f"<{form}>"), form
    # It is hidden before the line is cut, so no beginning of it is left.
    assert one_line("x" * 290 + SECRET) == "x" * 290 + "[hidden]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("", "holds no certificate"),
        ("not a certificate", "holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no certificate"),
    ],
)
@pytest.mark.parametrize("name", ["KFP_CA_CERTIFICATE", "SSL_CERT_FILE"])
def test_a_ca_file_that_cannot_be_used_is_named(
    name: str, content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    if name == "SSL_CERT_FILE":
        monkeypatch.setenv(name, str(path))
    tls_context.cache_clear()
    uses: list[Callable[[], object]] = (
        [lambda: connect(Access("https://127.0.0.1:1", "ns", ca_certificate=str(path)))]
        if name == "KFP_CA_CERTIFICATE"
        else [
            lambda: Client("https://127.0.0.1:1"),
            lambda: OpenAIChat("https://127.0.0.1:1", "m"),
            lambda: connect(Access("https://127.0.0.1:1", "ns")),
        ]
    )
    for use in uses:
        with pytest.raises(InputError, match=f"{name}: {path}.*{message}"):
            use()


def test_doctor_names_the_ca_file_and_not_the_host(tmp_path: Path) -> None:
    known = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "KFP_"))}
    missing = {"KFP_CA_CERTIFICATE": "/none/ca.pem", "KUBECONFIG": "/none", "AWS_EC2_METADATA_DISABLED": "true"}
    done = finished_process("doctor", "--kfp-host", "https://127.0.0.1:1", environment={**known, **missing})
    assert "api: KFP_CA_CERTIFICATE: /none/ca.pem: No such file or directory" in done.stdout
    assert "ollama image" in done.stdout, "the other checks are missing"
