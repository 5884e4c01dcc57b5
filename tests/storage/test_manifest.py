"""Publication in folders and buckets: the manifest is written last and once, and files are verified when fetched."""

import hashlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.files import AlreadyThereError
from chatmetrics.components.storage.manifest import MAX_BYTES, fetch, publish, read_manifest, stage
from chatmetrics.components.storage.store import open_store

DESCRIPTION: dict[str, Any] = {
    "quantization": "Q4_K_M",
    "prompt_template": "{system}<｜User｜>{input}<｜Assistant｜>",
    "context_length": 2048,
    "stop": ["<｜end▁of▁sentence｜>"],
    "provenance": {"dataset": "d", "base": "b", "adapter": "a"},
}


@pytest.fixture(params=["folder", "bucket"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The store of the models."""
    if request.param == "folder":
        return str(tmp_path / "models")
    return f"s3://{request.getfixturevalue('bucket')}/models"


def write_weights(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hotel-Q4_K_M.gguf").write_bytes(content)
    return folder / "hotel-Q4_K_M.gguf"


def test_a_published_model_is_described_and_can_be_fetched(models: str, tmp_path: Path) -> None:
    uri = publish(stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION))
    assert uri == open_store(models).uri("hotel/1/manifest.json")
    assert open_store(models).list("hotel/1/m") == ["hotel/1/manifest.json"]

    manifest = fetch(uri, tmp_path / "fetched")
    assert manifest == read_manifest(uri) == read_manifest(uri.removesuffix("/manifest.json"))
    assert (tmp_path / "fetched" / "hotel-Q4_K_M.gguf").read_bytes() == b"weights"
    written = json.loads((tmp_path / "fetched" / "manifest.json").read_text())
    assert written["files"] == [
        {"name": "hotel-Q4_K_M.gguf", "size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    ]
    assert {key: written[key] for key in DESCRIPTION} == DESCRIPTION


def test_publishing_again_is_possible_with_equal_content_only(models: str, tmp_path: Path) -> None:
    uri = publish(stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION))
    before = open_store(models).read_bytes("hotel/1/manifest.json")
    assert publish(stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION)) == uri
    for content, description in ((b"others", DESCRIPTION), (b"weights", {**DESCRIPTION, "context_length": 4096})):
        with pytest.raises(AlreadyThereError, match="choose another version") as caught:
            publish(stage(models, "hotel", "1", [write_weights(tmp_path, content)], description))
        assert "\n" not in str(caught.value)
    assert open_store(models).read_bytes("hotel/1/manifest.json") == before
    assert fetch(uri, tmp_path / "fetched").context_length == 2048


def test_an_empty_version_becomes_a_hash_of_the_content(models: str, tmp_path: Path) -> None:
    first = publish(stage(models, "hotel", "", [write_weights(tmp_path, b"weights")], DESCRIPTION))
    assert publish(stage(models, "hotel", "", [write_weights(tmp_path, b"weights")], DESCRIPTION)) == first
    second = publish(stage(models, "hotel", "", [write_weights(tmp_path, b"others")], DESCRIPTION))
    assert second != first
    assert len(read_manifest(second).version) == 12
    assert read_manifest(first).version == "c4e719ac13ea"  # what it was before a manifest could name an acceptance test


def test_a_candidate_is_not_a_model_until_it_is_published(models: str, tmp_path: Path) -> None:
    candidate = stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION)
    assert open_store(models).list("") == ["hotel/1/candidate.json", "hotel/1/hotel-Q4_K_M.gguf"]
    assert fetch(candidate, tmp_path / "fetched").evaluation is None
    with pytest.raises(StorageError):
        read_manifest(open_store(models).uri("hotel/1"))
    uri = publish(candidate, {"strict": 0.9})
    assert read_manifest(uri).evaluation == {"strict": 0.9}
    # A version is never rewritten, not even with the scores of a later evaluation.
    assert publish(candidate, {"strict": 0.1}) == uri
    assert read_manifest(uri).evaluation == {"strict": 0.9}


def write_acceptance_test(folder: Path, content: bytes = b"questions") -> Path:
    """Write a folder with the files that evaluate writes."""
    folder.mkdir()
    (folder / f"acceptance_test-{hashlib.sha256(content).hexdigest()[:12]}.json").write_bytes(content)
    (folder / "hotel-0123456789ab.sqlite").write_bytes(b"rows")
    return folder


def test_an_acceptance_test_is_published_with_the_model(models: str, tmp_path: Path) -> None:
    folder = write_acceptance_test(tmp_path / "acceptance_test")
    candidate = stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION)
    staged = read_manifest(candidate)
    manifest = fetch(publish(candidate, {"strict": 0.9}, folder), tmp_path / "fetched")

    assert manifest.acceptance_test == next(folder.glob("*.json")).name
    assert [file.name for file in manifest.files] == [
        "hotel-Q4_K_M.gguf",
        *sorted(path.name for path in folder.iterdir()),
    ]
    for path in folder.iterdir():
        assert (tmp_path / "fetched" / path.name).read_bytes() == path.read_bytes()
    assert (manifest.version, manifest.evaluation) == ("1", {"strict": 0.9})
    assert read_manifest(candidate) == staged and staged.acceptance_test == ""


def test_a_published_version_keeps_its_acceptance_test(models: str, tmp_path: Path) -> None:
    candidate = stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION)
    uri = publish(candidate, None, write_acceptance_test(tmp_path / "first", b"first"))
    stored, published = open_store(models).list("hotel/1"), read_manifest(uri)
    assert publish(candidate) == publish(candidate, None, write_acceptance_test(tmp_path / "other", b"other")) == uri
    assert (open_store(models).list("hotel/1"), read_manifest(uri)) == (stored, published)

    without = stage(models, "hotel", "2", [write_weights(tmp_path, b"weights")], DESCRIPTION)
    uri = publish(without)
    assert publish(without, None, tmp_path / "other") == uri
    assert read_manifest(uri).acceptance_test == ""


def test_other_content_is_refused_with_an_acceptance_test(models: str, tmp_path: Path) -> None:
    candidate = stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION)
    uri = publish(candidate, None, write_acceptance_test(tmp_path / "acceptance_test"))
    published = read_manifest(uri).model_dump(mode="json")
    published["files"][0]["sha256"] = "0" * 64
    open_store(models).put_bytes(json.dumps(published).encode(), "hotel/1/manifest.json", overwrite=True)
    with pytest.raises(AlreadyThereError, match="choose another version"):
        publish(candidate, None, tmp_path / "acceptance_test")


def test_a_folder_without_one_acceptance_test_is_not_published(models: str, tmp_path: Path) -> None:
    candidate = stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION)
    before = open_store(models).list("")
    several = write_acceptance_test(tmp_path / "several")
    (several / "acceptance_test-0.json").write_bytes(b"{}")
    (tmp_path / "empty").mkdir()
    for folder, count in ((several, 2), (tmp_path / "empty", 0)):
        with pytest.raises(InputError, match=f"contains {count} files acceptance_test-"):
            publish(candidate, None, folder)
    assert open_store(models).list("") == before


def test_a_manifest_without_the_acceptance_test_field_is_read(models: str, tmp_path: Path) -> None:
    candidate = stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION)
    uri = publish(candidate)
    for key in ("hotel/1/candidate.json", "hotel/1/manifest.json"):
        fields = json.loads(open_store(models).read_bytes(key))
        del fields["acceptance_test"]
        open_store(models).put_bytes(json.dumps(fields).encode(), key, overwrite=True)
    assert read_manifest(uri).acceptance_test == ""
    assert publish(stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION)) == uri


def publish_after_barrier(start: Any, outcomes: Any, models: str, path: Path, description: dict[str, Any]) -> None:
    start.wait()
    try:
        outcomes.put(publish(stage(models, "hotel", "1", [path], description)))
    except StorageError as error:
        outcomes.put(f"refused: {error}")


@pytest.mark.parametrize("same", [True, False], ids=["same", "different"])
def test_one_of_two_concurrent_publishers_succeeds(models: str, tmp_path: Path, same: bool) -> None:
    processes = multiprocessing.get_context("spawn")
    start, outcomes = processes.Barrier(2), processes.Queue()
    path = write_weights(tmp_path, b"weights")
    descriptions = (DESCRIPTION, DESCRIPTION if same else {**DESCRIPTION, "context_length": 4096})
    publishers = [
        processes.Process(target=publish_after_barrier, args=(start, outcomes, models, path, description))
        for description in descriptions
    ]
    for publisher in publishers:
        publisher.start()
    said = sorted(outcomes.get(timeout=60) for _ in publishers)
    for publisher in publishers:
        publisher.join(60)

    uri = open_store(models).uri("hotel/1/manifest.json")
    if same:
        assert said == [uri, uri]
    else:
        assert sum(outcome == uri for outcome in said) == 1
        assert sum("with other content" in outcome or "has other content" in outcome for outcome in said) == 1
    assert fetch(uri, tmp_path / "fetched").version == "1"


def test_fetching_repairs_local_damage_and_reports_damage_in_the_store(models: str, tmp_path: Path) -> None:
    uri = publish(stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION))
    mine = tmp_path / "fetched" / "hotel-Q4_K_M.gguf"
    fetch(uri, mine.parent)
    time_of_good_file = mine.stat().st_mtime_ns
    fetch(uri, mine.parent)
    assert mine.stat().st_mtime_ns == time_of_good_file

    mine.write_bytes(b"damaged")
    fetch(uri, mine.parent)
    assert mine.read_bytes() == b"weights"

    open_store(models).put_bytes(b"evil", "hotel/1/hotel-Q4_K_M.gguf", overwrite=True)
    mine.unlink()
    with pytest.raises(StorageError, match=r"hotel-Q4_K_M.gguf is damaged"):
        fetch(uri, mine.parent)
    assert not mine.exists()


def test_a_file_larger_than_its_manifest_states_is_not_fetched(models: str, tmp_path: Path) -> None:
    uri = publish(stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION))
    open_store(models).put_bytes(b"weights" * 1000, "hotel/1/hotel-Q4_K_M.gguf", overwrite=True)
    with pytest.raises(StorageError, match="is damaged: it has 7000 bytes instead of 7; publish it again"):
        fetch(uri, tmp_path / "fetched")
    assert [path for path in (tmp_path / "fetched").rglob("*") if path.is_file()] == []


def test_a_manifest_of_any_size_is_not_read(models: str, tmp_path: Path) -> None:
    uri = publish(stage(models, "hotel", "1", [write_weights(tmp_path, b"weights")], DESCRIPTION))
    open_store(models).put_bytes(b" " * (MAX_BYTES + 1), "hotel/1/manifest.json", overwrite=True)
    with pytest.raises(StorageError, match=r"manifest.json is not read, because it has more than 16 MiB"):
        read_manifest(uri)


def test_a_version_without_manifest_does_not_exist(models: str, tmp_path: Path) -> None:
    open_store(models).put_file(write_weights(tmp_path, b"weights"), "hotel/1/hotel-Q4_K_M.gguf")
    with pytest.raises(StorageError):
        read_manifest(open_store(models).uri("hotel/1/manifest.json"))


def test_an_invalid_manifest_is_an_error_in_one_line(tmp_path: Path) -> None:
    path = write_weights(tmp_path, b"weights")
    for name, version, description in (("../x", "1", {}), ("x", "a/b", {}), ("x", "1", {"quantisation": "Q4_K_M"})):
        with pytest.raises(InputError) as caught:
            publish(stage(str(tmp_path / "models"), name, version, [path], description))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "models").exists()

    (tmp_path / "manifest.json").write_text('{"name": "x"}')
    with pytest.raises(StorageError, match="is not a model's manifest: version: Field required"):
        read_manifest(str(tmp_path / "manifest.json"))
    hostile = {"name": "x", "version": "1", "created": "2024-01-01T00:00:00Z"}
    hostile["files"] = [{"name": "../../x", "size": 1, "sha256": "0" * 64}]
    (tmp_path / "manifest.json").write_text(json.dumps(hostile))
    with pytest.raises(StorageError, match=r"files\.0\.name"):
        read_manifest(str(tmp_path / "manifest.json"))
    hostile |= {"files": [{"name": "x", "size": 1, "sha256": "0" * 64}], "acceptance_test": "../../x"}
    (tmp_path / "manifest.json").write_text(json.dumps(hostile))
    with pytest.raises(StorageError, match=r"acceptance_test: .*'\.\./\.\./x' is not one of the files"):
        read_manifest(str(tmp_path / "manifest.json"))


def test_a_version_does_not_depend_on_the_order_of_keys(models: str, tmp_path: Path) -> None:
    files = [write_weights(tmp_path, b"weights")]
    reordered = {**DESCRIPTION, "provenance": dict(reversed(DESCRIPTION["provenance"].items()))}
    assert publish(stage(models, "hotel", "", files, DESCRIPTION)) == publish(
        stage(models, "hotel", "", files, reordered)
    )
