"""Copies of folders to and from a store."""

from pathlib import Path

import pytest

from chatmetrics.components.base_model.references import local_model
from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.mirror import pull_folder, push_folder
from chatmetrics.components.storage.store import open_store
from tests.storage import s3


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"s3://{request.getfixturevalue('bucket')}/mirror"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_can_be_fetched_and_has_a_name_that_depends_on_its_content(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "inner" / "weights").write_bytes(b"\0" * 1000)
    (folder / ".hidden").write_text("no")
    uri = push_folder(folder, place)
    assert push_folder(folder, place) == uri
    pull_folder(uri, tmp_path / "back")
    assert files(tmp_path / "back") == {"config.json": b"{}", "inner/weights": b"\0" * 1000}
    pull_folder(uri, tmp_path / "part", lambda key: key.endswith("weights"))
    assert set(files(tmp_path / "part")) == {"inner/weights"}
    (folder / "config.json").write_text("[]")
    assert push_folder(folder, place) != uri


def test_a_folder_created_by_an_s3_console_is_not_a_file(aws: s3.Server, bucket: str, tmp_path: Path) -> None:
    for key in ("spider/", "spider/database/", "spider/database/a.sqlite"):
        aws.client.put_object(Bucket=bucket, Key=key, Body=b"x" if key.endswith("e") else b"")
    pull_folder(f"s3://{bucket}/spider", tmp_path / "back")
    assert files(tmp_path / "back") == {"database/a.sqlite": b"x"}


@pytest.mark.parametrize("key", ["../evil", "a/../../evil", "a/..", "./x", "/absolute", ".."])
def test_a_key_that_leads_out_of_a_folder_is_refused(
    aws: s3.Server, bucket: str, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to the bucket chooses keys; a user may also choose a URI."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "inner" / "cache"))
    for name in ("config.json", f"{key}/x.json"):
        aws.client.put_object(Bucket=bucket, Key=f"base/{name}", Body=b"x")
    uri = f"s3://{bucket}/base"
    with pytest.raises(StorageError, match="cannot be used as a path"):
        pull_folder(uri, tmp_path / "inner" / "back")
    with pytest.raises(StorageError, match="cannot be used as a path"):
        local_model(uri)
    with pytest.raises(StorageError, match="cannot be used as a path"):
        open_store(str(tmp_path / "inner")).get_file(f"{key}/x.json", tmp_path / "x")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_can_be_deleted_twice(place: str) -> None:
    store = open_store(place)
    store.put_bytes(b"1", "a", overwrite=False)
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")
