"""The store in a folder: atomic files, and errors in one line."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError, ServiceError, StorageError
from chatmetrics.components.storage.files import AlreadyThereError, atomic_file, copy, disk_errors, full_disk
from chatmetrics.components.storage.store import open_store


def test_bytes_and_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    root = tmp_path / "my store"
    store = open_store(root.as_uri())
    (tmp_path / "model.gguf").write_bytes(b"weights")
    store.put_file(tmp_path / "model.gguf", "a/model.gguf")
    store.put_bytes(b"one", "a/hello.txt", overwrite=False)

    again = open_store(str(root))
    assert again.list("a/") == ["a/hello.txt", "a/model.gguf"]
    assert again.uri("a/model.gguf") == (root / "a/model.gguf").as_uri()
    assert again.exists("a/hello.txt") and not again.exists("a")
    assert again.read_bytes("a/hello.txt") == b"one"
    again.get_file("a/model.gguf", tmp_path / "deep" / "copy.gguf")
    assert (tmp_path / "deep" / "copy.gguf").read_bytes() == b"weights"


def test_files_are_overwritten_only_on_request(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put_bytes(b"one", "x", overwrite=False)
    with pytest.raises(AlreadyThereError, match="never overwritten"):
        store.put_bytes(b"two", "x", overwrite=False)
    assert store.read_bytes("x") == b"one"
    store.put_bytes(b"two", "x", overwrite=True)
    assert store.read_bytes("x") == b"two"

    (tmp_path / "file").write_bytes(b"three")
    with pytest.raises(AlreadyThereError, match="has other content"):
        store.put_file(tmp_path / "file", "x")
    (tmp_path / "file").write_bytes(b"two")
    store.put_file(tmp_path / "file", "x")
    assert store.list("") == ["x"]


def test_a_wrong_checksum_keeps_the_good_file(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put_bytes(b"evil", "x", overwrite=False)
    (tmp_path / "x").write_bytes(b"good")
    with pytest.raises(StorageError, match="is damaged"):
        store.get_file("x", tmp_path / "x", sha256="0" * 64)
    assert (tmp_path / "x").read_bytes() == b"good"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "x"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"good")
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "x") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"good")]


def test_a_file_that_grows_too_large_is_an_error_in_one_line(tmp_path: Path) -> None:
    """A file size limit of the process has the effect of a full disk: the same write fails."""
    (tmp_path / "model.gguf").write_bytes(bytes(2**20))
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from chatmetrics.components.errors import StorageError\n"
        "from chatmetrics.components.storage.store import open_store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n"
        "try:\n"
        "    open_store(sys.argv[1]).put_file(Path(sys.argv[2]), 'model.gguf')\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    store = tmp_path / "store"
    command = [sys.executable, "-c", program, str(store), str(tmp_path / "model.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{store / 'model.gguf'}: File too large"]
    assert list(store.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(bytes(2**20))
    with (
        pytest.raises(StorageError, match=r"^/models/x: the disk is full; free some space"),
        disk_errors(Path("/models/x")),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        copy(tmp_path / "model.gguf", full)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
QUOTA = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/quota/x")


def raised_from(cause: Exception, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


def raised_while_handling(cause: Exception, error: Exception) -> Exception:
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "path"),
    [
        (FULL, "/models"),
        (QUOTA, "/quota/x"),
        (OSError(errno.ENOSPC, "x", "/models/y"), "/models/y"),
        (raised_from(FULL, OSError("We couldn't connect to 'https://huggingface.co'")), "/models"),
        (raised_from(QUOTA, InputError("check the name and the network")), "/quota/x"),
        (raised_from(raised_from(FULL, RuntimeError("a")), ValueError("b")), "/models"),
        (raised_while_handling(FULL, KeyError("c")), "/models"),
        (
            raised_while_handling(raised_from(FULL, RuntimeError("a")), ServiceError("the Hub does not answer")),
            "/models",
        ),
        (ExceptionGroup("threads", [ValueError("d"), FULL]), "/models"),
        (ConnectionError("ProtocolError", FULL), "/models"),  # as requests and urllib3 nest them
        (RuntimeError("Data processing error: No space left on device (os error 28)"), "/models"),  # hf_xet
        (RuntimeError("Error while serializing: IoError(Os { code: 28 }) (os error 28)"), "/models"),
        (RuntimeError("caused by OSError: [Errno 28] No space left on device"), "/models"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "/models"),
    ],
)
def test_a_full_disk_is_named_whatever_a_library_made_of_it(error: BaseException, path: str) -> None:
    found = full_disk(error, Path("/models"))
    assert isinstance(found, StorageError)
    assert str(found).startswith(f"{path}: the disk is full; free some space")
    assert str(found).endswith(" GiB free now)")


@pytest.mark.parametrize(
    "error",
    [
        OSError("no network"),
        OSError(errno.EACCES, "x"),
        RuntimeError("(os error 13)"),
        raised_from(OSError(errno.ECONNRESET, "x"), ValueError("y")),
        StorageError("checksum"),
    ],
)
def test_another_error_is_not_blamed_on_the_disk(error: BaseException) -> None:
    assert full_disk(error) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_an_error_in_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="not allowed") as caught:
        open_store(str(tmp_path / "store")).put_bytes(b"x", "x", overwrite=True)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_error_in_one_line(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for ask in (
        lambda: store.read_bytes("x"),
        lambda: store.get_file("x", tmp_path / "y"),
        lambda: store.put_file(tmp_path / "z", "x"),
    ):
        with pytest.raises(StorageError, match="no such file or folder; check the path"):
            ask()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["", "s3://", "http://example.org/x", "file://elsewhere/x"])
def test_an_invalid_location_is_an_input_error(uri: str) -> None:
    with pytest.raises(InputError):
        open_store(uri)
