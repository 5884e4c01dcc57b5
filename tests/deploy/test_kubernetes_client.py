import base64
import json
import stat
import time
from pathlib import Path

import pytest

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient, kubeconfig, token_expiry
from chatmetrics.components.errors import ServiceError


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the deployer's secret, as it is mounted in the step's pod."""
    (tmp_path / "token").write_text("secret-token")
    (tmp_path / "authority.crt").touch()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    return tmp_path


def test_the_pod_s_kubeconfig_is_private_and_temporary_and_has_no_token(credentials: Path) -> None:
    with kubeconfig(credentials, str(credentials / "authority.crt")) as path:
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
        text = Path(path).read_text()
        assert "secret-token" not in text
        content = json.loads(text)
        assert content["clusters"][0]["cluster"]["server"] == "https://10.96.0.1:443"
        assert content["users"][0]["user"] == {"tokenFile": str(credentials / "token")}
        assert KubernetesClient("shop", path).api.configuration.host == "https://10.96.0.1:443"
    assert not Path(path).exists()


def test_an_ipv6_address_is_written_in_brackets(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    with kubeconfig(credentials, str(credentials / "authority.crt")) as path:
        assert json.loads(Path(path).read_text())["clusters"][0]["cluster"]["server"] == "https://[fd00::1]:443"


def test_without_the_secret_the_user_s_own_kubeconfig_is_used(tmp_path: Path) -> None:
    with kubeconfig(tmp_path / "none") as path:
        assert path == ""


def test_a_secret_without_a_token_or_outside_a_pod_is_an_error(
    credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (credentials / "token").unlink()
    with pytest.raises(ServiceError, match="has no token"), kubeconfig(credentials):
        pass
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ServiceError, match="this is not a pod"), kubeconfig(credentials):
        pass


def service_account_token(seconds: float) -> str:
    """A token with the claims of a service account's that expires in some seconds."""
    claims = {"exp": int(time.time() + seconds), "sub": "system:serviceaccount:kubeflow:chatmetrics-deployer"}
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256"}, claims, "signature")]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def test_an_expired_token_is_named_before_anything_else_happens(credentials: Path) -> None:
    token = service_account_token(-60)
    (credentials / "token").write_text(token)
    expired = r"token expired at 2\d{3}-.* UTC; the command in helm/deployer"
    with pytest.raises(ServiceError, match=expired) as caught, kubeconfig(credentials):
        pass
    assert token not in str(caught.value)
    (credentials / "token").write_text(service_account_token(60))
    with kubeconfig(credentials) as path:
        assert path


@pytest.mark.parametrize("token", ["", "a.b.c", "secret-token", "..", "e30.e30.e30", "e30.eyJleHAiOiAieCJ9.x", "a.é.b"])
def test_a_token_without_an_expiry_has_none(token: str) -> None:
    assert token_expiry(token) is None


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["/none/plugin"], "No such file or directory"),
        (["sh", "-c", "echo token hunter2-Xyzzy expired >&2; exit 1"], "process returned 1"),
        (["echo", "hunter2-Xyzzy"], "failed to decode process output"),
        (["echo", "{}"], "exec: "),
    ],
)
def test_a_credential_plugin_that_fails_is_an_error_without_its_output(
    command: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, *arguments = command
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never"}
    content = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"exec": {**plugin, "command": name, "args": arguments}}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(json.dumps(content))
    with pytest.raises(ServiceError, match=f"no access to Kubernetes: the credential plugin .*{message}") as caught:
        KubernetesClient("shop", str(tmp_path / "config"))
    assert "hunter2" not in str(caught.value) + capfd.readouterr().err


def test_an_unusable_kubeconfig_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("")
    with pytest.raises(ServiceError, match="no access to Kubernetes"):
        KubernetesClient("shop", str(tmp_path / "config"))
