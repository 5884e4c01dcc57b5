"""The init container fetches models to the volume, verifies them, and does not need the store for a restart."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from chatmetrics.components.errors import StorageError
from chatmetrics.components.serve.model import find_model
from chatmetrics.components.serve.settings import ServeSettings
from chatmetrics.components.serve.volume.model_store import ModelStore
from chatmetrics.components.storage.manifest import sign_manifest
from chatmetrics.components.storage.signature import sign
from chatmetrics.components.storage.store import open_store
from tests.serve.pods import COMMAND, RunningPod, published
from tests.storage.keys import key_pair
from tests.storage.s3 import Server


@pytest.fixture
def pod(tmp_path: Path) -> RunningPod:
    uri = published(tmp_path, "1")
    return RunningPod(tmp_path / "pod", [{"name": "hotel", "uri": uri}])


def blobs(pod: RunningPod) -> list[Path]:
    return [path for path in (pod.root / "ollama/models/blobs").iterdir() if path.name.startswith("sha256-")]


def test_a_model_is_fetched_once_and_linked_for_ollama(pod: RunningPod, tmp_path: Path) -> None:
    done = pod.fetch()
    assert done.returncode == 0, done.stderr
    [blob] = blobs(pod)
    assert blob.is_symlink() and blob.read_bytes()[:4] == b"GGUF"
    assert "hotel:1 is on the volume" in done.stdout
    shutil.rmtree(tmp_path / "models")  # the store is not available
    shutil.rmtree(pod.root / "ollama")  # a new pod has an empty folder
    (pod.root / "ollama").mkdir()
    again = pod.fetch()
    assert again.returncode == 0, again.stderr
    assert blobs(pod)[0].read_bytes()[:4] == b"GGUF"


def test_a_file_damaged_on_the_volume_is_fetched_again(pod: RunningPod) -> None:
    assert pod.fetch().returncode == 0
    target = blobs(pod)[0].resolve()
    good = target.read_bytes()
    target.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert pod.fetch().returncode == 0
    assert target.read_bytes() == good


def test_an_index_that_cannot_be_read_is_ignored(pod: RunningPod) -> None:
    assert pod.fetch().returncode == 0
    (pod.root / "models/index/0123.json").write_text('{"from": "a later version"}', "utf-8")
    done = pod.fetch()
    assert done.returncode == 0
    assert "0123.json cannot be read" in done.stderr


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_file_in_the_store_is_named(pod: RunningPod, tmp_path: Path, damage: str) -> None:
    gguf = tmp_path / "models/hotel/1/answering.gguf"
    data = gguf.read_bytes()
    gguf.write_bytes(data[:-100] if damage == "truncated" else data[:500] + bytes([data[500] ^ 1]) + data[501:])
    done = pod.fetch()
    assert done.returncode == 6
    assert "answering.gguf" in done.stderr and "damaged" in done.stderr
    assert not list((pod.root / "models").rglob("*.gguf"))


def test_without_a_manifest_there_is_no_model(pod: RunningPod, tmp_path: Path) -> None:
    (tmp_path / "models/hotel/1/manifest.json").unlink()
    done = pod.fetch()
    assert done.returncode == 6
    assert "manifest.json" in done.stderr.splitlines()[-1]


def test_a_candidate_is_refused(pod: RunningPod) -> None:
    pod.models[0]["uri"] += "/candidate.json"
    done = pod.fetch()
    assert done.returncode == 3
    assert "did not pass the gate" in done.stderr


def test_models_that_do_not_fit_into_memory_are_not_fetched(pod: RunningPod) -> None:
    done = pod.fetch(memory_limit=100 * 2**20)
    assert done.returncode == 3
    assert "100 MiB" in done.stderr and "hotel:1" in done.stderr
    assert not list((pod.root / "models").rglob("*.gguf"))
    assert pod.fetch(memory_limit=1000 * 2**20).returncode == 0


def age(folder: Path, minutes: float) -> None:
    """Make everything that is recorded on the volume older."""
    for path in (*(folder / "index").iterdir(), *(folder / "served").iterdir()):
        then = path.stat().st_mtime - 60 * minutes
        os.utime(path, (then, then))


def serve(pod: RunningPod, uri: str, passes: bool = True) -> None:
    """Do what a pod does with a version: fetch it and, if it passes its acceptance test, mark it as served."""
    pod.models[0]["uri"] = uri
    assert pod.fetch().returncode == 0
    if passes:
        store = ModelStore(pod.root / "models")
        store.mark_served(store.manifest(uri))
    age(pod.root / "models", 60)


def versions(pod: RunningPod) -> set[str]:
    return {path.name.partition("-")[0] for path in (pod.root / "models/hotel").iterdir()}


def test_versions_that_are_not_in_use_are_deleted(pod: RunningPod, tmp_path: Path) -> None:
    uris = [pod.models[0]["uri"], *(published(tmp_path, version) for version in ("2", "3", "4"))]
    for uri in uris[:3]:
        serve(pod, uri)
    serve(pod, uris[3])
    assert versions(pod) == {"2", "3", "4"}  # when 4 was fetched, 2 and 3 were the last served versions
    serve(pod, uris[3])
    assert versions(pod) == {"3", "4"}


def test_versions_that_fail_do_not_displace_the_one_that_serves(pod: RunningPod, tmp_path: Path) -> None:
    serve(pod, pod.models[0]["uri"])
    for version in ("2", "3", "4"):
        serve(pod, published(tmp_path, version), passes=False)
    assert versions(pod) == {"1", "4"}


def test_versions_that_are_served_or_were_just_fetched_are_kept(pod: RunningPod, tmp_path: Path) -> None:
    pod.settings = {"keepVersions": 1}
    first = pod.models[0]["uri"]
    serve(pod, first)
    serve(pod, published(tmp_path, "2"))
    store = ModelStore(pod.root / "models")
    store.mark_served(store.manifest(first))  # another pod of the release still serves it
    for version in ("3", "4"):
        pod.models[0]["uri"] = published(tmp_path, version)
        assert pod.fetch().returncode == 0
    assert versions(pod) == {"1", "3", "4"}


def test_a_version_that_does_not_fit_on_the_volume_changes_nothing(pod: RunningPod, tmp_path: Path) -> None:
    assert pod.fetch().returncode == 0
    before = sorted((pod.root / "models").rglob("*"))
    good = pod.models[0]["uri"]
    pod.models[0]["uri"] = published(tmp_path, "2")
    manifest = tmp_path / "models/hotel/2/manifest.json"
    content = json.loads(manifest.read_bytes())
    content["files"][0]["size"] = 10**15
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(content), "utf-8")
    refused = pod.fetch()
    assert (refused.returncode, len(refused.stderr.splitlines())) == (6, 1)
    assert "hotel:2 needs 953674317 MiB on the volume" in refused.stderr and "storage.size" in refused.stderr
    locks = pod.root / "models/locks"
    assert [path for path in sorted((pod.root / "models").rglob("*")) if path.parent != locks] == [
        path for path in before if path.parent != locks
    ]
    pod.models[0]["uri"] = good
    assert pod.fetch().returncode == 0


def test_a_complete_version_needs_no_space_on_the_volume(pod: RunningPod) -> None:
    assert pod.fetch().returncode == 0
    command = ["prlimit", "--fsize=0", *COMMAND, "fetch", str(pod.release)]  # no byte can be written to any file
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_is_left_of_an_incomplete_version_is_deleted(pod: RunningPod, tmp_path: Path) -> None:
    folder = pod.root / "models/hotel/0-0123456789ab"
    folder.mkdir(parents=True)
    (folder / ".answering.gguf.0123.part").write_bytes(b"x" * 1000)
    assert pod.fetch().returncode == 0
    assert versions(pod) == {"1"}
    # But not if a pod is fetching it now, and not that of the version that is fetched next.
    own = next((pod.root / "models/hotel").iterdir())
    next((pod.root / "models/index").iterdir()).unlink()
    (own / ".begun.part").write_bytes(b"x")
    folder.mkdir()
    with (pod.root / "models/locks" / f"hotel-{folder.name}").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pod.fetch().returncode == 0
    assert versions(pod) == {"0", "1"}
    assert (own / ".begun.part").exists()


def test_a_pod_whose_version_is_complete_does_not_wait_for_pods_that_fetch_others(
    pod: RunningPod, tmp_path: Path
) -> None:
    assert pod.fetch().returncode == 0
    [own] = (pod.root / "models/hotel").iterdir()
    with (
        (pod.root / "models/locks/hotel-2-0123456789ab").open("a") as other,
        (pod.root / "models/locks" / f"hotel-{own.name}").open("a") as same,
    ):
        fcntl.flock(other, fcntl.LOCK_EX)
        fcntl.flock(same, fcntl.LOCK_SH)  # another pod that verifies the same version
        done = pod.fetch()
    assert done.returncode == 0
    assert "waiting" not in done.stderr


def test_several_models_and_the_same_weights_under_two_names(pod: RunningPod, tmp_path: Path) -> None:
    pod.models.append({"name": "finance", "uri": published(tmp_path, "1", name="finance")})
    assert pod.fetch().returncode == 0
    assert len(blobs(pod)) == 1  # Ollama has equal weights once


def test_a_model_from_s3_is_kept_when_s3_is_not_available(
    pod: RunningPod, tmp_path: Path, bucket: str, aws: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"s3://{bucket}/models")
    for path in (tmp_path / "models/hotel/1").iterdir():
        store.put_file(path, f"hotel/1/{path.name}")
    pod.models[0]["uri"] = f"s3://{bucket}/models/hotel/1"
    assert pod.fetch().returncode == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert pod.fetch().returncode == 0
    pod.models[0]["uri"] = f"s3://{bucket}/models/hotel/2"
    done = pod.fetch()
    assert done.returncode == 6
    assert "does not answer" in done.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"models": []}, "models"),
        ({"rate": 5}, "rate"),
        ({"nonsense": 1}, "nonsense"),
        ({"models": [{"name": "a", "uri": "x"}] * 2}, "'a'"),
    ],
)
def test_an_invalid_release_names_the_value(pod: RunningPod, change: dict[str, object], expected: str) -> None:
    pod.settings = change
    done = pod.fetch()
    assert done.returncode == 3
    assert expected in done.stderr


def test_a_name_in_a_manifest_cannot_leave_a_folder(pod: RunningPod, tmp_path: Path) -> None:
    path = tmp_path / "models/hotel/1/manifest.json"
    manifest = json.loads(path.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    for field in ("name", "version"):
        for value in ("/outside", "..", ".ssh", "a/b", "", "a\nb", "../../outside"):
            path.write_text(json.dumps({**manifest, field: value}), "utf-8")
            with pytest.raises(StorageError, match=f"is not a model's manifest: {field}: "):
                find_model(str(path), ServeSettings(cache=str(tmp_path / "home/cache")))
    assert sorted(tmp_path.rglob("*")) == before
    done = pod.fetch()
    assert (done.returncode, len(done.stderr.splitlines())) == (6, 1)
    assert "is not a model's manifest: version: " in done.stderr


def test_only_the_manifest_that_passed_the_gate_is_fetched(pod: RunningPod, tmp_path: Path) -> None:
    manifest = tmp_path / "models/hotel/1/manifest.json"
    pod.models[0]["sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert pod.fetch().returncode == 0
    shutil.rmtree(pod.root / "models")
    (pod.root / "models").mkdir()
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text("utf-8").replace('"context_length": 512', '"context_length": 511'), "utf-8")
    refused = pod.fetch()
    assert (refused.returncode, len(refused.stderr.splitlines())) == (6, 1)
    assert "is not the manifest that passed the gate" in refused.stderr
    assert not list((pod.root / "models").rglob("*.gguf"))


@pytest.mark.parametrize("changed", ["weights", "index", "weights and index"])
def test_a_pod_does_not_serve_what_was_changed_on_its_volume(pod: RunningPod, tmp_path: Path, changed: str) -> None:
    manifest = tmp_path / "models/hotel/1/manifest.json"
    pod.models[0]["sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert pod.fetch().returncode == 0
    shutil.rmtree(tmp_path / "models")  # a serving pod cannot reach the object store
    [index] = (pod.root / "models/index").glob("*.json")
    [weights] = (pod.root / "models").rglob("*.gguf")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    sha256 = hashlib.sha256(content if changed != "index" else b"other").hexdigest()
    old = hashlib.sha256(weights.read_bytes()).hexdigest()
    if "weights" in changed:
        weights.chmod(0o644)
        weights.write_bytes(content)
    if "index" in changed:
        index.write_text(index.read_text("utf-8").replace(old, sha256), "utf-8")
    with pod.proxy() as process:
        assert process.wait(60) == 6
    expected = "is not the manifest that passed the gate" if "index" in changed else "are not those of the manifest"
    assert expected in (pod.root / "proxy.log").read_text("utf-8")


def signed(pod: RunningPod, folder: Path) -> tuple[str, Path]:
    """Require signatures of a pod, and sign its model; returns the private key and the manifest's path."""
    private, pod.settings["manifestKey"] = key_pair(folder / "keys")
    manifest = folder / "models/hotel/1/manifest.json"
    sign_manifest(str(manifest), manifest.read_bytes(), private, "KEY")
    return private, manifest


def test_a_signed_model_is_fetched_and_served_without_the_store(pod: RunningPod, tmp_path: Path) -> None:
    signed(pod, tmp_path)
    assert pod.fetch().returncode == 0
    shutil.rmtree(tmp_path / "models")
    with pod.ready():
        assert pod.post("/ask", {"question": "All hotels?"}).status_code == 200


@pytest.mark.parametrize("fault", ["unsigned", "other key", "of another manifest", "manifest changed", "no base64"])
def test_a_model_that_is_not_signed_by_the_gate_is_refused(pod: RunningPod, tmp_path: Path, fault: str) -> None:
    private, manifest = signed(pod, tmp_path)
    signature = manifest.with_name("manifest.sig")
    if fault == "unsigned":
        signature.unlink()
    elif fault == "manifest changed":
        manifest.chmod(0o644)
        manifest.write_text(manifest.read_text("utf-8").replace('"context_length": 512', '"context_length": 511'))
    else:
        key = key_pair(tmp_path / "other")[0] if fault == "other key" else private
        sign_manifest(str(manifest), manifest.read_bytes() if fault == "other key" else b"{}", key, "KEY")
    if fault == "no base64":
        signature.write_bytes(b"\xff")
    refused = pod.fetch()
    assert (refused.returncode, len(refused.stderr.splitlines())) == (6, 1)
    assert "is not signed" in refused.stderr and "hotel/1" in refused.stderr
    assert not list((pod.root / "models").rglob("*.gguf"))


@pytest.mark.parametrize("fault", ["signature missing", "signature changed", "index changed"])
def test_a_pod_does_not_serve_what_was_signed_otherwise_on_its_volume(
    pod: RunningPod, tmp_path: Path, fault: str
) -> None:
    private, _ = signed(pod, tmp_path)
    assert pod.fetch().returncode == 0
    shutil.rmtree(tmp_path / "models")  # a serving pod cannot reach the object store
    [index] = (pod.root / "models/index").glob("*.json")
    if fault == "index changed":
        index.write_text(index.read_text("utf-8").replace('"context_length": 512', '"context_length": 511'), "utf-8")
    else:
        index.with_suffix(".sig").unlink()
    if fault == "signature changed":
        index.with_suffix(".sig").write_bytes(sign(b"{}", private, "KEY"))
    with pod.proxy() as process:
        assert process.wait(60) == 6
    assert "is not signed with the key of manifestKey" in (pod.root / "proxy.log").read_text("utf-8")


def test_a_key_that_is_required_later_gets_the_signature_from_the_store(pod: RunningPod, tmp_path: Path) -> None:
    assert pod.fetch().returncode == 0
    signed(pod, tmp_path)
    assert pod.fetch().returncode == 0
    shutil.rmtree(tmp_path / "models")
    assert pod.fetch().returncode == 0


def test_an_index_of_any_size_on_the_volume_is_not_read(pod: RunningPod) -> None:
    assert pod.fetch().returncode == 0
    [index] = (pod.root / "models/index").glob("*.json")
    good = index.read_bytes()
    with index.open("ab") as file:
        file.truncate(2**40)  # sparse
    done = pod.fetch()
    assert done.returncode == 0, done.stderr
    assert index.read_bytes() == good


def test_the_same_weights_with_different_parameters_are_refused(tmp_path: Path) -> None:
    uris = [published(tmp_path, "1"), published(tmp_path, "2", stop=("a",))]
    models = [{"name": name, "uri": uri} for name, uri in zip(("hotel", "inn"), uris, strict=True)]
    refused = RunningPod(tmp_path / "pod", models).fetch()
    assert refused.returncode == 3
    assert "hotel and inn have the same weights" in refused.stderr


def test_weights_with_two_names_need_memory_once(tmp_path: Path) -> None:
    uri = published(tmp_path, "1")
    pod = RunningPod(tmp_path / "pod", [{"name": name, "uri": uri} for name in ("hotel", "inn")])
    one_runner = 330 * 2**20
    done = pod.fetch(one_runner)
    assert done.returncode == 0, done.stderr
