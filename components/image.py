"""The image reference of a step, which carries a hash of the step's source."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from chatmetrics.components.errors import InputError

HERE = Path(__file__).parent
IMAGES = HERE.parent / "images"  # exists in a checkout only
SHARED = ("nl2sql", "storage", "inference", "base_model")
REGISTRY = "chatmetrics"
COPIED = re.compile(r"^COPY (helm/\S+) ", re.MULTILINE)  # files that are not code
PARENT = re.compile(r"^ARG BASE=chatmetrics/(\S+)", re.MULTILINE)


def image(step: str) -> str:
    """Return the reference of the image of `step`.

    It is the recorded reference if the image was built from exactly this source, else `chatmetrics/<step>:<hash>`,
    which no image has: a built image's tag also has a hash of its base. Built images are recorded in
    images/digests.json, or in the file that CHATMETRICS_IMAGE_DIGESTS names. A variant such as train-cu126 is a step's
    image with other packages.

    Raises:
        InputError: the digest file cannot be read.
    """
    if is_built(step):
        return str(digests(digests_file())[step]["reference"])
    return f"{REGISTRY}/{step}:{source_hash(step)}"


def is_built(step: str) -> bool:
    """Whether an image built from exactly this source is recorded."""
    return bool(digests(digests_file()).get(step, {}).get("hash") == source_hash(step))


@cache
def source_hash(name: str) -> str:
    """Hash everything of this repository that goes into an image; the first part of its tag.

    KFP's cache key contains the image's name and not the code in the image (kubeflow/pipelines#8236), so the tag must
    change when the code does. The second part of the tag, a hash of the base and what else differs between builds, is
    known only where the image is built. The code is the step's own package and the packages and modules that all steps
    share; in a checkout the Containerfile and the locks are hashed too.
    """
    digest = hashlib.sha256()
    files: set[Path] = set()
    if _is_step(name):
        files.update(_code(name))
    if (IMAGES / name).is_dir():
        files.update(_build_files(name))
    for path in sorted(files):
        digest.update(path.relative_to(HERE.parent).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def digests_file() -> Path:
    """The record of built images: $CHATMETRICS_IMAGE_DIGESTS, or the checkout's images/digests.json."""
    return Path(os.environ.get("CHATMETRICS_IMAGE_DIGESTS") or IMAGES / "digests.json")


def digests(path: Path) -> dict[str, dict[str, Any]]:
    """Read a digest file: `hash`, `reference` and `digest` (null if not pushed) per image; {} if there is no file.

    Raises:
        InputError: the file has another form.
    """
    try:
        return {name: {"hash": "", **entry, "reference": entry["reference"]} for name, entry in _json(path).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a digest file: write it with `chatmetrics images build`") from error


def containerfile(name: str) -> Path:
    """The Containerfile of an image. A variant has its step's."""
    own = IMAGES / name / "Containerfile"
    return own if own.is_file() else IMAGES / name.partition("-")[0] / "Containerfile"


def parent_image(name: str) -> str:
    """The image of this repository that an image is built on, or "": torch for train, torch-cu126 for train-cu126."""
    _, dash, variant = name.partition("-")
    path = containerfile(name)
    found = PARENT.search(path.read_text("utf-8")) if path.is_file() else None
    return found[1] + dash + variant if found else ""


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.exists() else {}


def _step_folder(name: str) -> Path:
    return HERE / name.partition("-")[0]


def _is_step(name: str) -> bool:
    return _step_folder(name).is_dir()


def _code(name: str) -> Iterator[Path]:
    yield from HERE.glob("*.py")
    for folder in (_step_folder(name), *(HERE / shared for shared in SHARED)):
        for kind in ("*.py", "*.jinja", "*.js", "*.html"):
            yield from folder.rglob(kind)


def _build_files(name: str) -> Iterator[Path]:
    yield containerfile(name)
    copied = COPIED.findall(containerfile(name).read_text("utf-8"))
    for folder in (IMAGES / name, *(HERE.parent / path for path in copied)):
        # Templates of Containerfiles are not part of an image; the generated Containerfile is.
        yield from (path for path in folder.rglob("*") if path.is_file() and path.name != "Containerfile.jinja")
    if _is_step(name):
        yield from (*IMAGES.glob("*.lock"), IMAGES / "sbom.py")
    parent = parent_image(name)
    if parent:
        yield from _build_files(parent)
