import json
import stat
from pathlib import Path

import pytest

from chatmetrics.components.deploy.cluster import Cluster, kubeconfig
from chatmetrics.components.errors import ServiceError


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The deployer's secret, as its pod sees it."""
    (tmp_path / "token").write_text("secret-token")
    (tmp_path / "ca.crt").touch()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    return tmp_path


def test_the_pod_s_kubeconfig_is_private_temporary_and_without_the_token(credentials: Path) -> None:
    with kubeconfig(credentials) as path:
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
        text = Path(path).read_text()
        assert "secret-token" not in text
        content = json.loads(text)
        assert content["clusters"][0]["cluster"]["server"] == "https://10.96.0.1:443"
        assert content["users"][0]["user"] == {"tokenFile": str(credentials / "token")}
        assert Cluster("shop", path).api.configuration.host == "https://10.96.0.1:443"
    assert not Path(path).exists()


def test_an_address_of_ipv6_is_written_in_brackets(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    with kubeconfig(credentials) as path:
        assert json.loads(Path(path).read_text())["clusters"][0]["cluster"]["server"] == "https://[fd00::1]:443"


def test_without_the_secret_the_person_s_own_kubeconfig_counts(tmp_path: Path) -> None:
    with kubeconfig(tmp_path / "none") as path:
        assert path == ""


def test_a_secret_without_a_token_and_a_secret_outside_a_pod_are_told(
    credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (credentials / "token").unlink()
    with pytest.raises(ServiceError, match="holds no token"), kubeconfig(credentials):
        pass
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ServiceError, match="this is no pod"), kubeconfig(credentials):
        pass


def test_a_kubeconfig_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("")
    with pytest.raises(ServiceError, match="no access to Kubernetes"):
        Cluster("shop", str(tmp_path / "config"))
