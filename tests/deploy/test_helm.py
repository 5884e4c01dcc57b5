"""The helm program: versions and error reasons. tests/e2e/test_deploy_step.py runs it on a cluster."""

from pathlib import Path

import pytest

from chatmetrics.components.deploy.helm import Helm, HelmError, find_helm, reason_in
from chatmetrics.components.errors import InputError, ServiceError

ROLLED_BACK = (
    'level=WARN msg="upgrade failed" name=demo error="context canceled"\n'
    "Error: UPGRADE FAILED: release demo failed, and has been rolled back due to {option} being set: "
    "resource Deployment/shop/demo not ready. status: InProgress\ncontext deadline exceeded\n"
)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for other versions: it stores its arguments, prints the file `printed` and exits with `status`."""
    path = tmp_path / "helm"
    path.write_text(
        f'#!/bin/sh\ncd {tmp_path}\n[ "$1" = version ] && {{ cat version; exit; }}\n'
        'printf "%s\\n" "$@" > arguments\necho "$HELM_DRIVER" > driver\ncat printed >&2\nexit "$(cat status)"\n'
    )
    path.chmod(0o755)
    for name, text in {"version": "v4.3.1", "printed": "", "status": "0"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("CHATMETRICS_HELM", str(path))
    return path


def upgrade(folder: Path) -> list[str]:
    Helm("shop").upgrade("demo", folder, {"models": []}, "0123", 90, lambda: None)
    return (folder / "arguments").read_text().split()


@pytest.mark.parametrize(
    ("version", "option"),
    [
        ("v3.19.0+g3d8990f", "--atomic"),
        ("v4.3.1", "--rollback-on-failure"),
        ("v4.0.0+g99cd196", "--rollback-on-failure"),
    ],
)
def test_each_major_version_gets_its_own_option_for_the_rollback(program: Path, version: str, option: str) -> None:
    (program.parent / "version").write_text(version)
    arguments = upgrade(program.parent)
    assert {"--atomic", "--rollback-on-failure"} & set(arguments) == {option}
    assert {"--install", "--wait", "--reset-values", "--timeout=90s", "--namespace", "shop"} <= set(arguments)


def test_releases_are_stored_in_config_maps_unless_the_environment_says_otherwise(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HELM_DRIVER", raising=False)
    upgrade(program.parent)
    assert (program.parent / "driver").read_text() == "configmap\n"
    monkeypatch.setenv("HELM_DRIVER", "secret")
    upgrade(program.parent)
    assert (program.parent / "driver").read_text() == "secret\n"


@pytest.mark.parametrize("version", ["v2.17.0", "v5.0.0", "Client: 1"])
def test_another_major_version_is_refused(program: Path, version: str) -> None:
    (program.parent / "version").write_text(version)
    with pytest.raises(ServiceError, match="Helm 3 and 4 are supported"):
        Helm("shop")


def test_a_missing_helm_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATMETRICS_HELM", "no-such-helm")
    with pytest.raises(ServiceError, match="no-such-helm is not on the PATH: install Helm"):
        find_helm()


@pytest.mark.parametrize("option", ["rollback-on-failure", "atomic"])
def test_the_reason_is_one_line_without_helm_s_prefix(option: str) -> None:
    assert reason_in(ROLLED_BACK.format(option=option)) == (
        "resource Deployment/shop/demo not ready. status: InProgress; context deadline exceeded"
    )
    uninstalled = f"Error: release first failed, and has been uninstalled due to {option} being set: context canceled"
    assert reason_in(uninstalled) == "context canceled"
    assert reason_in("Error: release: not found\n") == "release: not found"


def test_a_wrong_value_is_an_input_error_that_names_it(program: Path) -> None:
    (program.parent / "status").write_text("1")
    (program.parent / "printed").write_text(
        "Error: UPGRADE FAILED: values don't meet the specifications of the schema(s) in the following chart(s):\n"
        "chatmetrics-ollama:\n- at '/storage': got number, want object\n- at '': additional properties 'x' not all…\n"
    )
    with pytest.raises(InputError, match=r"^deploy\.values: at '/storage': got number, want object; at '': additional"):
        upgrade(program.parent)
    (program.parent / "printed").write_text(
        "Error: execution error at (chatmetrics-ollama/templates/deployment.yaml:1:4): these values cannot work:\n"
        "  - models: file:///m is not on a mounted volume\n\nUse --debug flag to render out invalid YAML\n"
    )
    with pytest.raises(InputError, match=r"^deploy\.values: models: file:///m is not on a mounted volume$"):
        upgrade(program.parent)


def test_a_missing_permission_names_the_file_that_lists_the_rights(program: Path) -> None:
    (program.parent / "status").write_text("1")
    (program.parent / "printed").write_text(
        'Error: query: secrets is forbidden: User "x" cannot list resource "secrets"'
    )
    with pytest.raises(HelmError, match=r"forbidden.*; helm/deployer\.yaml lists what is needed"):
        upgrade(program.parent)
    with pytest.raises(ServiceError, match=r"helm/deployer\.yaml"):
        Helm("shop").history("demo")


def test_a_fault_found_during_an_operation_interrupts_helm(program: Path) -> None:
    program.write_text(
        f'#!/bin/sh\n[ "$1" = version ] && {{ echo v4.3.1; exit; }}\n'
        f"trap 'touch {program.parent}/interrupted; exit 1' INT\nwhile :; do sleep 0.1; done\n"
    )
    fault = ServiceError("a damaged file")
    assert Helm("shop").upgrade("demo", program.parent, {}, "0123", 90, lambda: fault) is fault
    assert (program.parent / "interrupted").exists()
