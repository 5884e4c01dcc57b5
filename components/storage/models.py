"""Local copies of base and merged models from a folder, a bucket or the Hugging Face Hub."""

import hashlib
import os
import re
from fnmatch import fnmatch
from pathlib import Path

from chatmetrics.components.credentials import read_secret
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.storage.files import full_disk
from chatmetrics.components.storage.store import local_path, open_store

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Tokenizer, configuration and chat templates, but no code. Weights in safetensors only, not in other formats.
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
MODEL_FILES = ("*.safetensors", *TOKENIZER_FILES)


def local_model(reference: str, revision: str = "") -> Path:
    """The folder of a Hugging Face model, downloaded if it is not on this machine. `check_base_model` checks its files.

    Args:
        reference: a folder, a file:// URI, an s3://bucket/prefix with the folder's files, or a Hub name.
        revision: branch, tag or commit of a Hub name.

    Raises:
        InputError: the model does not exist.
        ServiceError: the Hub does not answer.
        StorageError: the bucket or the disk failed.
    """
    folder = _folder(reference, revision, MODEL_FILES)
    if not folder.exists():
        raise InputError(f"model {reference}: no such folder, or no model files in it; check the name")
    return folder


def local_tokenizer(reference: str, revision: str = "") -> Path:
    """The folder of a model's tokenizer. Works like `local_model`, but does not download weights.

    Raises:
        InputError: the tokenizer does not exist.
        ServiceError: the Hub does not answer.
        StorageError: the bucket or the disk failed.
    """
    folder = _folder(reference, revision, TOKENIZER_FILES)
    if not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"tokenizer {reference}: there is no {folder / 'tokenizer.json'}; name a Hugging Face model folder"
        )
    return folder


def fingerprint(reference: str, revision: str = "") -> str:
    """A hash that changes with the content of a reference and is fast to compute, for cache keys and manifests.

    It covers the names and stamps (see `Store.stamp`) of the files in a folder or under an s3:// prefix, or the stamp
    of a single file. A Hub name is not looked up: its fingerprint is name@revision.

    Raises:
        InputError: the reference is neither an s3:// prefix with files, nor an existing path, nor a Hub name.
        StorageError: the bucket or the disk failed.
    """
    if reference.startswith("s3://") or local_path(reference).is_dir():
        store = open_store(reference)
        stamps = [f"{key} {store.stamp(key)}" for key in store.list("")]
    elif local_path(reference).is_file():
        path = local_path(reference)
        stamps = [open_store(str(path.parent)).stamp(path.name)]
    elif HUB_NAME.fullmatch(reference):
        return f"{reference}@{revision or 'main'}"
    else:
        stamps = []
    if not stamps:
        raise InputError(f"{reference}: no such file or folder, or it is empty; check the path")
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()


def _folder(reference: str, revision: str, patterns: tuple[str, ...]) -> Path:
    if reference.startswith("s3://"):
        return _from_bucket(reference, patterns)
    if HUB_NAME.fullmatch(reference) and not local_path(reference).exists():
        return _from_hub(reference, revision, patterns)
    return local_path(reference)


def _from_bucket(uri: str, patterns: tuple[str, ...]) -> Path:
    store = open_store(uri)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "chatmetrics" / "models" / uri.removeprefix("s3://").strip("/")
    keys = {key for key in store.list("") if any(fnmatch(key, pattern) for pattern in patterns)}
    for key in keys:
        store.get_file(key, folder / key)
    for path in folder.rglob("*"):
        key = path.relative_to(folder).as_posix()
        # Deleted from the bucket since the last download.
        if key not in keys and path.is_file() and any(fnmatch(key, pattern) for pattern in patterns):
            path.unlink()
    return folder


def _from_hub(name: str, revision: str, patterns: tuple[str, ...]) -> Path:
    # huggingface_hub takes half a second to import.
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    read_secret("HF_TOKEN")  # names a token that cannot be sent, before the library quotes it in its error
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        if full := full_disk(error, Path(HF_HUB_CACHE)):
            raise full from error
        raise ServiceError(
            f"model {name}: no such local folder, and the Hugging Face Hub does not answer; check the network"
        ) from error
    except (OSError, RuntimeError, HFValidationError) as error:
        if full := full_disk(error, Path(HF_HUB_CACHE)):
            raise full from error
        raise InputError(
            f"model {name}: no such local folder, and the download from the Hugging Face Hub failed "
            f"({type(error).__name__}); check the name, the revision, the network and HF_TOKEN"
        ) from error
