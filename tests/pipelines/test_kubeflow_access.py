"""Access to KFP: logging in at Dex as in Kubeflow, and the errors when the API does not answer or denies access."""

import threading
from collections.abc import Iterator
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.pipelines.cluster.dex import session_cookie
from chatmetrics.pipelines.cluster.kubeflow import Access, connect

FORM = '<form method="post" action="/dex/auth/local/login?back=&amp;state=abc"><input name="login"></form>'


class Kubeflow(BaseHTTPRequestHandler):
    """An API behind Dex, with its redirects, its form, its approval page and its cookie."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/dex/auth":
            self.answer(200, '<a href="/dex/auth/local">Log in with Email</a>')
        elif path == "/dex/auth/local":
            self.redirect("/dex/auth/local/login?state=abc")
        elif path == "/dex/auth/local/login":
            self.answer(200, FORM)
        elif path == "/dex/approval":
            self.answer(200, '<form method="post"><input name="approval" value="approve"></form>')
        elif path == "/oauth2/callback":
            self.redirect("/", "oauth2_proxy=session")
        elif self.is_known():
            self.answer(200, "{}", "application/json")
        elif path.startswith("/apis/"):
            self.answer(401, "who are you?")
        else:
            self.redirect("/dex/auth?client_id=kubeflow")

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if form.get("approval") == ["approve"]:
            self.redirect("/oauth2/callback")
        elif (form.get("login"), form.get("password")) == (["user@example.com"], ["12341234"]):
            self.redirect("/dex/approval?state=abc")
        else:
            self.answer(200, f"Invalid Email Address and password. {FORM}")

    def is_known(self) -> bool:
        cookie = SimpleCookie(self.headers.get("Cookie", ""))
        return "oauth2_proxy" in cookie or self.headers.get("authorization") == "Bearer secret"

    def redirect(self, where: str, cookie: str = "") -> None:
        self.send_response(303)
        self.send_header("Location", where)
        if cookie:
            self.send_header("Set-Cookie", f"{cookie}; Path=/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, status: int, text: str, kind: str = "text/html") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Kubeflow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_dex_accepts_the_right_password(host: str) -> None:
    assert session_cookie(host, "user@example.com", "12341234") == "oauth2_proxy=session"
    connect(Access(host, "kubeflow", dex_username="user@example.com", dex_password="12341234"))


def test_a_refused_login_does_not_show_the_password(host: str) -> None:
    with pytest.raises(ServiceError, match="Dex refused the login of 'user") as caught:
        session_cookie(host, "user@example.com", "wrong-password")
    assert "wrong-password" not in str(caught.value)


def test_a_token_and_cookies_are_sent(host: str) -> None:
    connect(Access(host, "kubeflow", token="secret"))
    connect(Access(host, "kubeflow", cookies="oauth2_proxy=session"))


def test_access_without_credentials_is_an_error_that_names_them(host: str) -> None:
    with pytest.raises(ServiceError, match="KFP_TOKEN"):
        connect(Access(host, "kubeflow"))


def test_an_api_that_does_not_answer_is_an_error_of_one_line() -> None:
    with pytest.raises(ServiceError, match="does not answer") as caught:
        connect(Access("http://127.0.0.1:9", "kubeflow"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="write a URL"):
        connect(Access("localhost:8888", "kubeflow"))
