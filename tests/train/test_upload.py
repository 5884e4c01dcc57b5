"""Checkpoints in a store, from which the next pod resumes."""

import time
from pathlib import Path

import pytest

from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.store import open_store
from chatmetrics.components.train.checkpoints.checksums import newest_complete, seal
from chatmetrics.components.train.checkpoints.upload import durable_checkpoints
from tests.storage import s3


@pytest.fixture
def uri(bucket: str) -> str:
    return f"s3://{bucket}/runs/1/checkpoints"


def checkpoint(folder: Path, step: int, content: str, sealed: bool = True) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "optimizer.pt").write_text(content)
    if sealed:
        seal(path)


def stored_checkpoints(uri: str) -> set[str]:
    return {key.partition(".")[0] for key in open_store(uri).list("checkpoint-")}


def test_the_next_pod_resumes_from_the_newest_complete_checkpoint(uri: str) -> None:
    with pytest.raises(SystemExit), durable_checkpoints(uri) as folder:
        (folder / "run.json").write_text("{}")
        checkpoint(folder, 50, "first")
        checkpoint(folder, 100, "second")
        checkpoint(folder, 150, "incomplete", sealed=False)
        raise SystemExit(143)
    with durable_checkpoints(uri) as again:
        assert again != folder
        newest = newest_complete(again)
        assert newest is not None
        assert (newest.name, (newest / "optimizer.pt").read_text()) == ("checkpoint-100", "second")
        assert (again / "run.json").read_text() == "{}"


def test_checkpoints_are_uploaded_during_training_and_old_ones_removed(uri: str) -> None:
    with durable_checkpoints(uri) as folder:
        for step in (10, 20, 30):
            checkpoint(folder, step, str(step))
        deadline = time.monotonic() + 20
        while stored_checkpoints(uri) != {"checkpoint-20", "checkpoint-30"} and time.monotonic() < deadline:
            time.sleep(0.2)
        assert stored_checkpoints(uri) == {"checkpoint-20", "checkpoint-30"}


def test_keep_sets_how_many_checkpoints_stay(uri: str) -> None:
    with durable_checkpoints(uri, keep=3) as folder:
        for step in (10, 20, 30, 40):
            checkpoint(folder, step, str(step))
    assert stored_checkpoints(uri) == {"checkpoint-20", "checkpoint-30", "checkpoint-40"}


@pytest.mark.parametrize("damage", ["other bytes", "file missing"])
def test_a_damaged_checkpoint_in_the_store_is_skipped_with_a_warning(
    uri: str, aws: s3.Server, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with durable_checkpoints(uri) as folder:
        checkpoint(folder, 10, "good")
        checkpoint(folder, 20, "damaged later")
    store = open_store(uri)
    (key,) = [key for key in store.list("checkpoint-20.") if key.endswith("optimizer.pt")]
    if damage == "file missing":
        store.delete(key)
    else:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        held = aws.client.head_object(Bucket=bucket, Key=f"{prefix}/{key}")
        aws.client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=b"worse", Metadata=held["Metadata"])
    with durable_checkpoints(uri) as folder:
        newest = newest_complete(folder)
        assert newest is not None and (newest / "optimizer.pt").read_text() == "good"
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-10"]
        stderr = capsys.readouterr().err
        assert f"{uri}/{key.partition('/')[0]} is skipped" in stderr and "damaged" in stderr
        checkpoint(folder, 15, "another")
    assert stored_checkpoints(uri) == {"checkpoint-10", "checkpoint-15"}


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(uri: str) -> None:
    with durable_checkpoints(uri) as folder:
        checkpoint(folder, 10, "damaged later")
    store = open_store(uri)
    store.delete(next(key for key in store.list("") if key.endswith("optimizer.pt")))
    with pytest.raises(StorageError, match="incomplete or damaged"), durable_checkpoints(uri):
        pytest.fail("it started")


def test_a_partly_uploaded_checkpoint_is_ignored_and_removed(uri: str) -> None:
    with durable_checkpoints(uri) as folder:
        checkpoint(folder, 10, "complete")
    store = open_store(uri)
    store.put_bytes(b"partial", "checkpoint-20.0123456789ab/optimizer.pt", overwrite=False)
    with durable_checkpoints(uri) as folder:
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-10"]
        checkpoint(folder, 20, "complete")
    assert not store.exists("checkpoint-20.0123456789ab/optimizer.pt")
    assert stored_checkpoints(uri) == {"checkpoint-10", "checkpoint-20"}


def test_a_repeated_step_with_other_bytes_is_no_conflict(uri: str) -> None:
    with durable_checkpoints(uri) as folder:
        checkpoint(folder, 10, "once")
    with durable_checkpoints(uri) as folder:
        (folder / "checkpoint-10").rename(folder / "old")
        checkpoint(folder, 10, "twice")
    assert len({key.partition("/")[0] for key in open_store(uri).list("checkpoint-10.")}) == 2


def test_a_run_that_resumes_another_reads_its_checkpoints_and_writes_its_own(uri: str) -> None:
    with durable_checkpoints(uri) as folder:
        checkpoint(folder, 10, "of the first run")
    before = open_store(uri).list("")
    own = f"{uri}-resumed"
    with durable_checkpoints(own, resumed=uri) as folder:
        assert (folder / "checkpoint-10" / "optimizer.pt").read_text() == "of the first run"
        checkpoint(folder, 20, "of the second")
    assert open_store(uri).list("") == before
    assert "checkpoint-20" in stored_checkpoints(own)
    with durable_checkpoints(own, resumed=uri) as folder:  # its own pod, started again
        assert (folder / "checkpoint-20").is_dir()


def test_a_checkpoint_removed_during_its_upload_is_skipped(uri: str) -> None:
    with durable_checkpoints(uri) as folder:
        checkpoint(folder, 10, "removed later")
        (folder / "checkpoint-10" / "optimizer.pt").unlink()
        (folder / "checkpoint-10" / "sealed.json").rename(folder / "kept")
        (folder / "checkpoint-10").rmdir()
        checkpoint(folder, 20, "kept")
    assert stored_checkpoints(uri) == {"checkpoint-20"}


def test_a_checkpoint_that_training_is_removing_is_not_uploaded_and_not_reported(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with durable_checkpoints(uri) as folder:
        checkpoint(folder, 10, "half removed")
        (folder / "checkpoint-10" / "optimizer.pt").unlink()  # the seal is still there
        checkpoint(folder, 20, "kept")
    assert stored_checkpoints(uri) == {"checkpoint-20"}
    assert capsys.readouterr().err == ""


def test_a_local_folder_is_used_directly(tmp_path: Path) -> None:
    with durable_checkpoints(str(tmp_path / "here")) as folder:
        assert folder == tmp_path / "here"
