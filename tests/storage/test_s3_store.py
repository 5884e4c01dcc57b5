"""The S3 store with a real server process, including killed clients and stalled connections."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.files import AlreadyThereError
from chatmetrics.components.storage.store import open_store
from tests.ports import free_port
from tests.storage import s3
from tests.waiting import wait_until

PART = 4 * s3.SMALLEST_PART
PARTS = 24
TRANSFER = """
import sys
from pathlib import Path
from chatmetrics.components.storage.store import open_store
uri, action, path, key, part = sys.argv[1:]
store = open_store(uri, int(part))
store.put_file(Path(path), key) if action == "put" else store.get_file(key, Path(path))
"""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom((PARTS - 1) * PART + 12345))
    return path


def transfer(action: str, bucket: str, path: Path, endpoint: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", TRANSFER, f"s3://{bucket}/models", action, str(path), "v1/model.gguf", str(PART)]
    return subprocess.Popen(command, env={**os.environ, "AWS_ENDPOINT_URL_S3": endpoint})


def test_bytes_and_files_are_read_as_they_were_written(bucket: str, tmp_path: Path, large: Path) -> None:
    store = open_store(f"s3://{bucket}/models", PART)
    store.put_bytes("上海".encode(), "a/hello.txt", overwrite=False)
    store.put_file(large, "a/model.gguf")
    (tmp_path / "empty").touch()
    store.put_file(tmp_path / "empty", "a/empty")

    assert store.read_bytes("a/hello.txt").decode() == "上海"
    assert store.list("a/") == ["a/empty", "a/hello.txt", "a/model.gguf"]
    assert store.exists("a/hello.txt") and not store.exists("a/hello")
    assert store.uri("a/hello.txt") == f"s3://{bucket}/models/a/hello.txt"
    for name in ("model.gguf", "empty"):
        store.get_file(f"a/{name}", tmp_path / "there" / name)
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["empty", "model.gguf"]


def test_storing_the_same_file_again_sends_nothing_and_another_file_is_refused(
    aws: s3.Server, bucket: str, large: Path
) -> None:
    store = open_store(f"s3://{bucket}", PART)
    store.put_file(large, "model.gguf")
    sent = len(aws.requests("PUT", f"/{bucket}/model.gguf"))
    store.put_file(large, "model.gguf")
    assert len(aws.requests("PUT", f"/{bucket}/model.gguf")) == sent == PARTS

    before = large.read_bytes()
    large.write_bytes(before[:-1] + b"x")
    with pytest.raises(AlreadyThereError, match="has other content"):
        store.put_file(large, "model.gguf")
    assert aws.client.get_object(Bucket=bucket, Key="model.gguf")["Body"].read() == before


def test_a_killed_upload_resumes_without_sending_a_part_twice(
    aws: s3.Server, bucket: str, large: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = s3.DeadLine(aws.endpoint, upstream=(PARTS // 2) * PART)
    with transfer("put", bucket, large, line.endpoint) as upload:
        assert line.dead.wait(60)
        upload.kill()
    there = aws.settled_parts(bucket)
    assert 3 <= len(there) < PARTS
    tried = len(aws.requests("PUT", f"/{bucket}/models/v1/model.gguf?uploadId="))

    assert transfer("put", bucket, large, aws.endpoint).wait(60) == 0
    assert aws.client.get_object(Bucket=bucket, Key="models/v1/model.gguf")["Body"].read() == large.read_bytes()
    assert aws.parts(bucket) == []
    assert len(aws.requests("PUT", f"/{bucket}/models/v1/model.gguf?uploadId=")) == tried + PARTS - len(there)
    assert f"resumes after {len(there)} parts" in capfd.readouterr().err


def test_an_unfinished_upload_of_another_file_is_not_aborted(aws: s3.Server, bucket: str, large: Path) -> None:
    foreign = aws.client.create_multipart_upload(Bucket=bucket, Key="model.gguf")["UploadId"]
    aws.client.upload_part(Bucket=bucket, Key="model.gguf", UploadId=foreign, PartNumber=1, Body=b"z" * PART)

    open_store(f"s3://{bucket}", PART).put_file(large, "model.gguf")
    assert aws.client.get_object(Bucket=bucket, Key="model.gguf")["Body"].read() == large.read_bytes()
    assert aws.parts(bucket) == [1]


def test_an_upload_started_for_a_longer_file_does_not_set_a_wrong_checksum(
    aws: s3.Server, bucket: str, large: Path, tmp_path: Path
) -> None:
    begun = aws.client.create_multipart_upload(Bucket=bucket, Key="model.gguf", Metadata={"sha256": "0" * 64})
    aws.client.upload_part(
        Bucket=bucket, Key="model.gguf", UploadId=begun["UploadId"], PartNumber=1, Body=large.read_bytes()[:PART]
    )
    store = open_store(f"s3://{bucket}", PART)
    store.put_file(large, "model.gguf")
    store.get_file("model.gguf", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == large.read_bytes()


def test_a_killed_download_resumes(
    aws: s3.Server, bucket: str, large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    open_store(f"s3://{bucket}/models", PART).put_file(large, "v1/model.gguf")
    target, part = tmp_path / "there" / "model.gguf", tmp_path / "there" / "model.gguf.part"
    line = s3.DeadLine(aws.endpoint, downstream=(PARTS // 2) * PART)
    with transfer("get", bucket, target, line.endpoint) as download:
        assert line.dead.wait(60)
        wait_until(lambda: part.exists(), 120)
        wait_until(lambda: part.stat().st_size >= PART, 120)
        download.kill()
    assert not target.exists()
    there = part.stat().st_size

    line = s3.DeadLine(aws.endpoint)
    assert transfer("get", bucket, target, line.endpoint).wait(60) == 0
    assert target.read_bytes() == large.read_bytes() and not part.exists()
    assert line.passed["down"] < large.stat().st_size - there + PART
    assert "resumes after" in capfd.readouterr().err


def test_a_part_of_another_download_is_replaced(bucket: str, large: Path, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}", PART)
    store.put_file(large, "model.gguf")
    (tmp_path / "back.gguf.part").write_bytes(b"of another version")
    store.get_file("model.gguf", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == large.read_bytes()


def test_a_damaged_object_is_detected_and_never_replaces_a_good_file(
    aws: s3.Server, bucket: str, tmp_path: Path
) -> None:
    store = open_store(f"s3://{bucket}")
    store.put_bytes(b"good", "model.gguf", overwrite=False)
    right = aws.client.head_object(Bucket=bucket, Key="model.gguf")["Metadata"]
    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=b"evil", Metadata=right)
    (tmp_path / "model.gguf").write_bytes(b"older")

    with pytest.raises(StorageError, match=rf"^s3://{bucket}/model.gguf is damaged: .*publish it again$"):
        store.get_file("model.gguf", tmp_path / "model.gguf")
    with pytest.raises(StorageError, match="is damaged"):
        store.read_bytes("model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_an_object_without_sha256_is_downloaded_once(aws: s3.Server, bucket: str, tmp_path: Path) -> None:
    aws.client.put_object(Bucket=bucket, Key="config.json", Body=b"{}")
    store = open_store(f"s3://{bucket}")
    store.get_file("config.json", tmp_path / "config.json")
    store.get_file("config.json", tmp_path / "config.json")
    assert len(aws.requests("GET", f"/{bucket}/config.json")) == 1
    assert (tmp_path / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("action", ["put", "read"])
def test_a_missing_bucket_is_an_error_in_one_line(aws: s3.Server, action: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = open_store("s3://no-such-bucket/models")
    with pytest.raises(StorageError) as caught:
        store.put_file(tmp_path / "file", "x") if action == "put" else store.read_bytes("x")
    assert str(caught.value) == (
        f"s3://no-such-bucket/models/x: the bucket no-such-bucket does not exist at {aws.endpoint}; "
        "create it or correct the URI"
    )


def test_a_missing_object_is_an_error_in_one_line(aws: s3.Server, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the object does not exist") as caught:
        open_store(f"s3://{bucket}").get_file("model.gguf", tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_an_error_in_one_line_without_secrets(
    aws: s3.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:\d+ does not answer") as caught:
        open_store("s3://bucket").read_bytes("x")
    assert "\n" not in str(caught.value) and s3.CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_missing_credentials_are_an_error_in_one_line(
    aws: s3.Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{bucket}").read_bytes("x")


def test_a_malformed_key_is_not_shown_in_the_error(
    aws: s3.Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "my-key\nwith a line break")
    with pytest.raises(InputError, match="AWS_ACCESS_KEY_ID") as caught:
        open_store(f"s3://{bucket}").read_bytes("x")
    assert "my-key" not in str(caught.value) and "\n" not in str(caught.value)
