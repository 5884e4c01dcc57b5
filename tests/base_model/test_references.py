"""References to base models, and their fingerprints."""

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from chatmetrics.components.base_model.references import fingerprint, local_model, local_tokenizer
from chatmetrics.components.errors import InputError, ServiceError, StorageError
from chatmetrics.components.storage.store import open_store


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_folder_and_its_uri_refer_to_the_folder(model: Path) -> None:
    assert local_model(str(model)) == local_model(model.as_uri()) == model


def test_a_model_in_a_bucket_is_downloaded_and_follows_changes(
    bucket: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(f"s3://{bucket}/base")
    for path in model.iterdir():
        store.put_file(path, path.name)
    reference = f"s3://{bucket}/base"
    before = fingerprint(reference)
    folder = local_model(reference)
    assert (folder / "model.safetensors").read_bytes() == b"weights"

    store.put_bytes(b"new weights", "model.safetensors", overwrite=True)
    assert fingerprint(reference) != before
    assert (local_model(reference) / "model.safetensors").read_bytes() == b"new weights"


def test_a_file_that_was_deleted_from_a_bucket_is_deleted_from_the_download(
    bucket: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reference = f"s3://{bucket}/base"
    store = open_store(reference)
    store.put_bytes(b"{}", "config.json", overwrite=True)
    store.put_bytes(b"{}", "adapter_config.json", overwrite=True)
    assert (local_model(reference) / "adapter_config.json").is_file()
    store.delete("adapter_config.json")
    assert not (local_model(reference) / "adapter_config.json").exists()


def test_a_tokenizer_is_downloaded_without_the_weights(
    bucket: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reference = f"s3://{bucket}/base"
    (model / "tokenizer.json").write_text("{}")
    for path in model.iterdir():
        open_store(reference).put_file(path, path.name)
    folder = local_tokenizer(reference)
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "config.json",
        "tokenizer.json",
    }
    assert (local_model(reference) / "model.safetensors").read_bytes() == b"weights"


def test_a_folder_without_tokenizer_is_an_error(model: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json; name"):
        local_tokenizer(str(model))


@pytest.mark.parametrize("reference", ["/no/such/folder", "a b", "", "ftp://x/y"])
def test_an_invalid_reference_is_an_error_in_one_line(reference: str) -> None:
    with pytest.raises(InputError) as caught:
        local_model(reference)
    assert "\n" not in str(caught.value) and reference in str(caught.value)


def test_a_hub_that_does_not_answer_is_a_service_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ServiceError, match="nobody/no-such-model") as caught:
        local_model("nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_fingerprint_depends_on_names_and_content_but_not_on_location_or_hidden_files(
    model: Path, tmp_path: Path
) -> None:
    before = fingerprint(str(model))
    moved = model.rename(tmp_path / "moved")
    (moved / ".cache").mkdir()
    (moved / ".cache" / "x").touch()
    assert fingerprint(str(moved)) == fingerprint(moved.as_uri()) == before

    (moved / "model.safetensors").write_bytes(b"weighty")
    changed = fingerprint(str(moved))
    (moved / "model.safetensors").rename(moved / "other.safetensors")
    assert len({before, changed, fingerprint(str(moved))}) == 3


@pytest.mark.parametrize(
    "wrapper",
    [OSError("Consistency check failed"), RuntimeError("Data processing error"), LocalEntryNotFoundError("cut off")],
)
def test_a_full_disk_during_a_download_is_not_blamed_on_the_name_or_the_network(
    wrapper: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def download(*_: object, **__: object) -> str:
        try:
            with Path("/dev/full").open("wb", buffering=0) as full:
                full.write(b"weights")
        except OSError as error:
            raise wrapper from error
        raise AssertionError("the disk is not full")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StorageError, match=rf"^{tmp_path}: the disk is full; free some space.*GiB free"):
        local_model("team/base-7b")


def test_a_fingerprint_of_a_file_in_a_bucket_depends_on_its_content(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/data")
    found = []
    for content in (b"one", b"two"):
        store.put_bytes(content, "questions.jsonl", overwrite=True)
        found.append(fingerprint(f"s3://{bucket}/data/questions.jsonl"))
    assert len(set(found)) == 2
    with pytest.raises(InputError, match="questions: no such file or folder"):
        fingerprint(f"s3://{bucket}/data/questions")


def test_a_fingerprint_of_a_hub_name_is_the_name_and_revision() -> None:
    assert fingerprint("org/model") == "org/model@main"
    assert fingerprint("org/model", "v2") == "org/model@v2"


def test_a_fingerprint_of_an_empty_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    for reference in (str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(InputError, match="no such file or folder"):
            fingerprint(reference)
