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
IMAGES = HERE.parent / "images"  # of a checkout; where the package is installed there is none
SHARED = ("nl2sql", "storage", "inference")
REGISTRY = "chatmetrics"
COPIED = re.compile(r"^COPY (helm/\S+) ", re.MULTILINE)  # what else than code goes into an image
BELOW = re.compile(r"^ARG BASE=chatmetrics/(\S+)", re.MULTILINE)


def image(step: str) -> str:
    """Reference of the image of `step`: as it was built from this very source, else `chatmetrics/<step>:<source hash>`.

    What was built is in images/digests.json, or in the file that CHATMETRICS_IMAGE_DIGESTS names. A variant as
    train-cu126 is a step's image with other packages.

    Raises:
        InputError: the file of digests cannot be read.
    """
    recorded = digests(digests_file())
    return str(recorded[step]["reference"]) if is_built(step) else f"{REGISTRY}/{step}:{source_hash(step)}"


def is_built(step: str) -> bool:
    """Whether the image of this very source is recorded as built."""
    return bool(digests(digests_file()).get(step, {}).get("hash") == source_hash(step))


@cache
def source_hash(name: str) -> str:
    """A hash of all that goes into an image, but for its base.

    KFP's cache key holds the image string and not the code inside it (kubeflow/pipelines#8236), so the tag must
    change when the code does: a step's own folder, the shared rooms and the modules beside them; in a checkout also
    the Containerfiles and locks.
    """
    digest = hashlib.sha256()
    files = set(_code(name) if _is_step(name) else ())
    if (IMAGES / name).is_dir():
        files.update(_build_files(name))
    for path in sorted(files):
        digest.update(path.relative_to(HERE.parent).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def digests_file() -> Path:
    """The file that says what was built: $CHATMETRICS_IMAGE_DIGESTS, or images/digests.json of the checkout."""
    return Path(os.environ.get("CHATMETRICS_IMAGE_DIGESTS") or IMAGES / "digests.json")


def digests(path: Path) -> dict[str, dict[str, Any]]:
    """By image: `hash`, `reference` and `digest` (null where it was not pushed); {} where there is no such file.

    Raises:
        InputError: it is no file of digests.
    """
    try:
        return {name: {"hash": "", **entry, "reference": entry["reference"]} for name, entry in _json(path).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is no file of image digests: write it with `chatmetrics images build`") from error


def containerfile(name: str) -> Path:
    """The file that an image is built from: a variant's is its step's."""
    own = IMAGES / name / "Containerfile"
    return own if own.is_file() else IMAGES / name.partition("-")[0] / "Containerfile"


def below(name: str) -> str:
    """The image of ours that an image stands on, or "": torch for train, torch-cu126 for train-cu126."""
    _, dash, variant = name.partition("-")
    path = containerfile(name)
    found = BELOW.search(path.read_text("utf-8")) if path.is_file() else None
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
    folders = [
        IMAGES / name,
        *(HERE.parent / folder for folder in COPIED.findall(containerfile(name).read_text("utf-8"))),
    ]
    yield from (path for folder in folders for path in folder.rglob("*") if path.is_file())
    if _is_step(name):
        yield from IMAGES.glob("*.lock")
    if lower := below(name):
        yield from _build_files(lower)
