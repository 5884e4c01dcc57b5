"""Signatures: `images build --sign-key` and `images verify`, with the real cosign and a registry where they are."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from chatmetrics.components.deploy.values import image_of
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.image import source_hash
from chatmetrics.pipelines.cli.images import app
from chatmetrics.pipelines.cluster.package import compile_package
from chatmetrics.pipelines.pools import load_pools
from chatmetrics.pipelines.recipe import load_recipe
from chatmetrics.pipelines.signatures import sign

COSIGN, CRANE = shutil.which("cosign"), shutil.which("crane")
STEPS = ("preprocess", "distill", "train", "merge", "convert", "evaluate", "deploy", "serve")
DIGEST = f"sha256:{'1' * 64}"
SECRET = "hunter2-of-the-key"
needs_cosign = pytest.mark.skipif(
    not COSIGN or not CRANE,
    reason="needs cosign 2.6 or newer and crane, whose `registry serve` is a registry, on the PATH",
)
# A stand-in for cosign: the images in $FAKE_SIGNED are signed.
FAKE = """#!/bin/sh
echo "$*" >> "$FAKE_LOG"
for last; do :; done
if [ "$1" = sign ]; then test -z "$FAKE_LOCKED" && exit; echo "Error: reading key: decrypt failed" >&2; exit 1; fi
case " $FAKE_SIGNED " in *" $last "*) ;; *) echo "Error: no signatures found" >&2; exit 1 ;; esac
"""


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Record an image by digest for each step, and return the references."""
    references = {name: f"registry.example/a/{name}@{DIGEST}" for name in STEPS}
    record(tmp_path / "digests.json", references)
    monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(tmp_path / "digests.json"))
    return references


def record(file: Path, references: dict[str, str]) -> None:
    file.write_text(
        json.dumps(
            {
                name: {"hash": source_hash(name), "reference": reference, "digest": None}
                for name, reference in references.items()
            }
        )
    )


@pytest.fixture
def cosign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in on the PATH and return its log."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cosign").write_text(FAKE)
    (tmp_path / "bin" / "cosign").chmod(0o755)
    (tmp_path / "cosign.pub").touch()
    (tmp_path / "cosign.key").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("COSIGN_PASSWORD", SECRET)
    return tmp_path / "log"


def verify(folder: Path, *packages: Path) -> Result:
    return CliRunner().invoke(app, ["verify", "--key", str(folder / "cosign.pub"), *map(str, packages)])


def test_images_of_packages_and_chart_are_verified(
    recorded: dict[str, str], cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SIGNED", " ".join(recorded.values()))
    done = verify(tmp_path)
    assert done.exit_code == 0, done.output + str(done.exception)
    others = {image_of(section, {}) for section in ("ollama", "anythingllm")}
    expected = {f"{reference}: verified" for reference in recorded.values()}
    assert set(done.output.splitlines()) == expected | {f"{name}: of another project, by digest" for name in others}


def test_an_image_without_a_signature_is_named_and_the_exit_status_is_not_0(
    recorded: dict[str, str], cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = recorded["merge"]
    monkeypatch.setenv("FAKE_SIGNED", " ".join(set(recorded.values()) - {missing}))
    done = verify(tmp_path)
    assert f"{missing}: no signatures found\n" in done.output
    assert isinstance(done.exception, ServiceError)
    assert str(done.exception) == f"not verified: {missing}"


def test_an_image_that_is_named_by_a_tag_is_not_verified(
    recorded: dict[str, str], cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "digests.json", {name: ref for name, ref in recorded.items() if name != "serve"})
    monkeypatch.setenv("FAKE_SIGNED", " ".join(recorded.values()))
    done = verify(tmp_path)
    unbuilt = f"chatmetrics/serve:{source_hash('serve')}"
    assert f"{unbuilt}: is named by a tag" in done.output
    assert str(done.exception) == f"not verified: {unbuilt}"


def test_the_images_of_a_package_are_verified_wherever_it_was_compiled(
    recorded: dict[str, str], cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package.yaml"
    chosen = ["deploy.enabled=true", 'deploy.values.ollama={"image": {"tag": "0.1.0"}}']
    compile_package(load_recipe("spider-7b", chosen, as_written=True), package, load_pools()["A100"])
    # What this checkout would name now does not matter.
    record(tmp_path / "digests.json", {})
    executed = {name: ref for name, ref in recorded.items() if name != "distill"}
    monkeypatch.setenv("FAKE_SIGNED", " ".join(executed.values()))
    done = verify(tmp_path, package)
    # The components name their images when they are imported, before this test recorded any.
    unrecorded = {line.partition(": ")[0] for line in done.output.splitlines() if ": is named by a tag" in line}
    assert "docker.io/ollama/ollama:0.1.0" in unrecorded
    assert {f"{recorded['train']}: verified", f"{recorded['serve']}: verified"} <= set(done.output.splitlines())
    assert str(done.exception) == f"not verified: {', '.join(sorted(unrecorded))}"


@pytest.mark.parametrize("text", ["", "a: 1", "[", "deploymentSpec: {executors: []}"])
def test_a_file_that_is_not_a_package_is_a_one_line_error(text: str, cosign: Path, tmp_path: Path) -> None:
    (tmp_path / "package.yaml").write_text(text)
    done = verify(tmp_path, tmp_path / "package.yaml")
    assert isinstance(done.exception, InputError)
    assert "package.yaml is not a compiled package" in str(done.exception)


def test_a_missing_key_or_cosign_is_a_one_line_error(
    recorded: dict[str, str], cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cosign.pub").unlink()
    assert "cosign.pub: does not exist; `cosign generate-key-pair`" in str(verify(tmp_path).exception)
    (tmp_path / "cosign.pub").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no cosign on the PATH" in str(verify(tmp_path).exception)


def build(folder: Path, *arguments: str) -> Result:
    tool = folder / "bin" / "podman"
    tool.write_text(
        '#!/bin/sh\ncase "$1" in\n'
        "    image) echo docker.io/library/python@sha256:ba5e ;;\n"
        f'    push) echo {DIGEST} > "$3" ;;\n'
        "esac\n"
    )
    tool.chmod(0o755)
    options = ["--tool", "podman", "--registry", "r.example", "--digests", str(folder / "built.json")]
    return CliRunner().invoke(app, ["build", "merge", *options, *arguments])


def test_every_pushed_image_is_signed_by_its_digest(cosign: Path, tmp_path: Path) -> None:
    done = build(tmp_path, "--push", "--sign-key", str(tmp_path / "cosign.key"))
    assert done.exit_code == 0, done.output + str(done.exception)
    signed = [line.split() for line in cosign.read_text().splitlines()]
    assert [words[-1] for words in signed] == [f"r.example/torch@{DIGEST}", f"r.example/merge@{DIGEST}"]
    assert SECRET not in done.output + cosign.read_text() + (tmp_path / "built.json").read_text()


def test_an_image_that_cannot_be_signed_is_not_recorded(
    cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LOCKED", "1")
    done = build(tmp_path, "--push", "--sign-key", str(tmp_path / "cosign.key"))
    assert str(done.exception) == f"r.example/torch@{DIGEST} cannot be signed: reading key: decrypt failed"
    assert not (tmp_path / "built.json").exists()


def test_what_signing_needs_is_checked_before_the_build(
    cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = str(tmp_path / "cosign.key")
    assert "--sign-key needs --push" in str(build(tmp_path, "--sign-key", key).exception)
    assert "none.key: does not exist" in str(build(tmp_path, "--push", "--sign-key", "none.key").exception)
    monkeypatch.delenv("COSIGN_PASSWORD")
    assert "COSIGN_PASSWORD is not set" in str(build(tmp_path, "--push", "--sign-key", key).exception)
    assert not cosign.exists()


# --- The real cosign -------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Start a registry in memory, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(CRANE), "registry", "serve", "--address", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(100):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield f"localhost:{port}"
        process.terminate()


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make two key pairs with a password, cosign and other, in a folder."""
    monkeypatch.setenv("COSIGN_PASSWORD", SECRET)
    for name in ("cosign", "other"):
        subprocess.run(["cosign", "generate-key-pair", f"--output-key-prefix={tmp_path / name}"], check=True)
    return tmp_path


@needs_cosign
def test_real_signatures_hold_for_their_key_and_image_only(
    registry: str, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = {}
    for name in STEPS:
        command = ["crane", "append", "--new_tag", f"{registry}/{name}:1", "--new_layer", layer(keys, name)]
        references[name] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        if name != "merge":
            sign(references[name], str(keys / "cosign.key"))
    record(keys / "digests.json", references)
    monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(keys / "digests.json"))
    done = verify(keys)
    assert str(done.exception) == f"not verified: {references['merge']}", done.output
    sign(references["merge"], str(keys / "other.key"))
    assert str(verify(keys).exception) == f"not verified: {references['merge']}"
    sign(references["merge"], str(keys / "cosign.key"))
    done = verify(keys)
    assert done.exit_code == 0, done.output
    monkeypatch.setenv("COSIGN_PASSWORD", "wrong-password")
    with pytest.raises(ServiceError, match=r"cannot be signed: .*decrypt") as failed:
        sign(references["merge"], str(keys / "cosign.key"))
    assert "wrong-password" not in str(failed.value)


def layer(folder: Path, content: str) -> str:
    (folder / "file").write_text(content)
    subprocess.run(["tar", "-cf", folder / "layer.tar", "-C", folder, "file"], check=True)
    return str(folder / "layer.tar")
