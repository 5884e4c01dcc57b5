"""Checkpoints in a store, from which the next pod resumes."""

import io
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.s3_store import S3Store
from chatmetrics.components.storage.store import Store, open_store
from chatmetrics.components.train.checkpoints import upload
from chatmetrics.components.train.checkpoints.checksums import newest_complete, seal
from chatmetrics.components.train.checkpoints.upload import durable_checkpoints
from tests.storage import s3
from tests.waiting import wait_until


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
        wait_until(lambda: stored_checkpoints(uri) == {"checkpoint-20", "checkpoint-30"}, 120)


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


class SlowStore:
    """A real store in which each upload of a file of a checkpoint waits for `open()`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._gate = threading.Semaphore(0)
        self.started: list[str] = []
        self.cleaned = 0  # times that old checkpoints were looked for, which follows an upload

    def put_file(self, path: Path, key: str) -> None:
        self.started.append(key.partition(".")[0])
        assert self._gate.acquire(timeout=60)
        self._store.put_file(path, key)

    def list(self, prefix: str) -> list[str]:
        self.cleaned += prefix == "checkpoint-"
        return self._store.list(prefix)

    def open(self, files: int = 1) -> None:
        self._gate.release(files)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def slow(uri: str, monkeypatch: pytest.MonkeyPatch) -> SlowStore:
    store = SlowStore(open_store(uri))
    monkeypatch.setattr(upload, "open_store", lambda _: store)
    monkeypatch.setattr(upload, "POLL_SECONDS", 0.02)
    return store


@pytest.mark.parametrize("links", [True, False])
def test_rotation_that_overtakes_a_slow_store_loses_no_upload(
    uri: str, slow: SlowStore, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(PermissionError("no links")))
    # Not pytest's capture: what another thread prints while `readouterr` empties the file is lost.
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", printed)

    def wait_for_warning(text: str) -> None:
        wait_until(lambda: text in printed.getvalue(), 120, f"no warning {text!r}")

    with durable_checkpoints(uri) as folder:
        checkpoint(folder, 1, "1")
        wait_until(lambda: slow.started, 120)  # checkpoint 1 is being uploaded, and nothing of it has arrived
        for step in range(2, 21):
            checkpoint(folder, step, str(step))
            if step > 2:
                shutil.rmtree(folder / f"checkpoint-{step - 2}")
        wait_for_warning("to 20, are not in it; if this pod ended now, all steps after 0 would be repeated")
        slow.open(2)
        wait_until(lambda: stored_checkpoints(uri) == {"checkpoint-1"} and len(slow.started) > 2, 120)
        checkpoint(folder, 21, "21")
        shutil.rmtree(folder / "checkpoint-19")
        wait_for_warning("the store is behind: its newest checkpoint is of step 1, and the ")
        slow.open(100)
    assert slow.started[2] == "checkpoint-20"  # the newest of that moment, and no other
    assert stored_checkpoints(uri) == {"checkpoint-20", "checkpoint-21"}
    assert ("copied for its upload" in printed.getvalue()) is not links
    with durable_checkpoints(uri) as again:
        newest = newest_complete(again)
        assert newest is not None and (newest / "optimizer.pt").read_text() == "21"


def test_a_store_that_keeps_up_causes_no_warning(uri: str, slow: SlowStore, capfd: pytest.CaptureFixture[str]) -> None:
    slow.open(1000)
    with durable_checkpoints(uri) as folder:
        for step in range(1, 6):
            checkpoint(folder, step, str(step))
            wait_until(lambda step=step: slow.cleaned == step, 60)
    assert capfd.readouterr().err == ""
    assert stored_checkpoints(uri) == {"checkpoint-4", "checkpoint-5"}


def test_a_failed_upload_is_reported_with_what_the_store_has(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with durable_checkpoints(uri) as folder:
        checkpoint(folder, 10, "first")
    with durable_checkpoints(uri) as folder:
        monkeypatch.setattr(S3Store, "put_file", lambda *_: (_ for _ in ()).throw(StorageError("the bucket is full")))
        checkpoint(folder, 20, "second")
    warning = (
        "warning: the newest checkpoints are not in the store yet (its newest checkpoint is of step 10): the bucket"
    )
    assert warning in capsys.readouterr().err


def test_a_local_folder_is_used_directly(tmp_path: Path) -> None:
    with durable_checkpoints(str(tmp_path / "here")) as folder:
        assert folder == tmp_path / "here"
