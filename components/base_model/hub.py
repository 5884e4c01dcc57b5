"""Downloads from the Hugging Face Hub."""

from pathlib import Path
from typing import Literal

from chatmetrics.components.credentials import read_secret
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.storage.files import full_disk


def hub_snapshot(
    kind: Literal["model", "dataset"],
    name: str,
    revision: str,
    patterns: tuple[str, ...],
    *,
    is_downloaded: bool = False,
) -> Path:
    """The folder of a repository's files at one commit, whose name is the commit's hash.

    Files that are not in the Hub's cache are downloaded. Without a network, and with HF_HUB_OFFLINE, the cached commit
    of the revision is taken.

    Args:
        kind: what the repository contains.
        name: its name, as in `organization/name`.
        revision: a branch, tag or commit; empty: the default branch.
        patterns: names of the files, with `*`.
        is_downloaded: whether to take the files from the cache without asking the Hub.

    Raises:
        InputError: there is no such repository or revision, or it may not be read.
        ServiceError: the Hub does not answer, and the files are not cached.
        StorageError: the disk is full.
    """
    # huggingface_hub takes half a second to import.
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    read_secret("HF_TOKEN")  # names a token that cannot be sent, before the library quotes it in its error
    missing = "no such local folder, and " if kind == "model" else ""
    try:
        folder = snapshot_download(
            name,
            repo_type=kind,
            revision=revision or None,
            allow_patterns=list(patterns),
            local_files_only=is_downloaded,
        )
        return Path(folder)
    except LocalEntryNotFoundError as error:
        if full := full_disk(error, Path(HF_HUB_CACHE)):
            raise full from error
        raise ServiceError(
            f"{kind} {name}: {missing}the Hugging Face Hub does not answer; check the network"
        ) from error
    except (OSError, RuntimeError, HFValidationError) as error:
        if full := full_disk(error, Path(HF_HUB_CACHE)):
            raise full from error
        raise InputError(
            f"{kind} {name}: {missing}the download from the Hugging Face Hub failed ({type(error).__name__}); check "
            "the name, the revision, the network and HF_TOKEN"
        ) from error
