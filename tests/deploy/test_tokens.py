"""The tokens of a release's clients, created through a stand-in of the Kubernetes API that stores Secrets."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.deploy.tokens import create_tokens, with_token_secret
from chatmetrics.components.errors import InputError
from tests.helm.chart import CHART, needs_helm, render

Secrets = dict[str, dict[str, str]]


class SecretsApi(http.server.BaseHTTPRequestHandler):
    """Reads, creates and patches the Secrets in `secrets`, as the API server does."""

    secrets: Secrets

    def do_GET(self) -> None:
        self._answer(self._name())

    def do_POST(self) -> None:
        content = self._content()
        self.secrets[content["metadata"]["name"]] = {}
        self._write(content["metadata"]["name"], content)

    def do_PATCH(self) -> None:
        self._write(self._name(), self._content())

    def _name(self) -> str:
        return self.path.rpartition("/")[2]

    def _content(self) -> dict[str, Any]:
        return dict(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _write(self, name: str, content: dict[str, Any]) -> None:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in content["stringData"].items()}
        self.secrets[name] |= encoded
        self._answer(name)

    def _answer(self, name: str) -> None:
        found = self.secrets.get(name)
        body = {"kind": "Status", "message": "not found"} if found is None else {"kind": "Secret", "data": found}
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Secrets:
    stored: Secrets = {}
    monkeypatch.setattr(SecretsApi, "secrets", stored, raising=False)
    return stored


@pytest.fixture
def cluster(secrets: Secrets, tmp_path: Path) -> Iterator[KubernetesClient]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SecretsApi)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    content = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(json.dumps(content))
    yield KubernetesClient("shop", str(tmp_path / "config"))
    server.shutdown()
    server.server_close()


def deployed(cluster: KubernetesClient, values: dict[str, Any]) -> dict[str, Any]:
    named = with_token_secret("hotel", CHART, values)
    create_tokens(cluster, "hotel", CHART, named)
    return named


def test_every_client_gets_its_own_long_token(cluster: KubernetesClient, secrets: Secrets) -> None:
    assert deployed(cluster, {"models": []}) == {"models": [], "auth": {"existingSecret": "hotel-tokens"}}
    assert secrets["hotel-tokens"].keys() == {"default", "smoke"}
    tokens = {base64.b64decode(token) for token in secrets["hotel-tokens"].values()}
    assert len(tokens) == 2
    assert min(map(len, tokens)) >= 40


def test_existing_tokens_stay_and_missing_ones_are_added(cluster: KubernetesClient, secrets: Secrets) -> None:
    secrets["hotel-tokens"] = {"default": "b2xk", "shop": "c2hvcA=="}
    values = {"auth": {"clients": ["default", "finance"]}, "anythingllm": {"enabled": True}}
    deployed(cluster, values)
    assert secrets["hotel-tokens"].keys() == {"default", "shop", "finance", "smoke", "anythingllm"}
    assert (secrets["hotel-tokens"]["default"], secrets["hotel-tokens"]["shop"]) == ("b2xk", "c2hvcA==")
    before = dict(secrets["hotel-tokens"])
    assert deployed(cluster, deployed(cluster, values)) == deployed(cluster, values)
    assert secrets["hotel-tokens"] == before


@pytest.mark.parametrize("auth", [{"enabled": False}, {"existingSecret": "mine"}])
def test_without_tokens_or_with_another_secret_nothing_is_created(
    auth: dict[str, Any], cluster: KubernetesClient, secrets: Secrets
) -> None:
    assert deployed(cluster, {"auth": auth}) == {"auth": auth}
    assert not secrets


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"auth": "none"}, "auth"),
        ({"auth": {"clients": "shop"}}, r"auth\.clients"),
        ({"auth": {"clients": [1]}}, r"auth\.clients"),
        ({"smokeTest": None}, "smokeTest"),
        ({"anythingllm": True}, "anythingllm"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], name: str, cluster: KubernetesClient, secrets: Secrets) -> None:
    with pytest.raises(InputError, match=rf"^deploy\.values\.{name}: write"):
        deployed(cluster, values)
    assert not secrets


@needs_helm
@pytest.mark.parametrize("example", ["hotel", "everything"])
def test_the_clients_are_those_of_the_chart(example: str, cluster: KubernetesClient, secrets: Secrets) -> None:
    anythingllm = {"enabled": example == "everything"}
    values = deployed(cluster, {"anythingllm": anythingllm})
    assert secrets["hotel-tokens"].keys() == render(example).one("Secret", "hotel-tokens")["data"].keys()
    # Helm stores what a chart creates with the release, which anyone who may read ConfigMaps can read.
    name = values["auth"]["existingSecret"]
    assert not [d for d in render(example, f'auth.existingSecret="{name}"').documents if d["kind"] == "Secret"]
