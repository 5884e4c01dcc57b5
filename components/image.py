"""The image reference of a step, which carries a hash of the step's source."""

import hashlib
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
SHARED = ("nl2sql", "storage", "inference")
REGISTRY = "chatmetrics"


@cache
def image(step: str) -> str:
    """Reference of the image of `step`: `chatmetrics/<step>:<source hash>`.

    KFP's cache key holds the image string and not the code inside it (kubeflow/pipelines#8236), so the tag must
    change when the code does: a step's own folder, the shared rooms and the modules beside them.
    """
    digest = hashlib.sha256()
    folders = [HERE / name for name in (step, *SHARED)]
    sources = (path for folder in folders for kind in ("*.py", "*.jinja", "*.js") for path in folder.rglob(kind))
    files = [*HERE.glob("*.py"), *sources]
    for path in sorted(files):
        digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{REGISTRY}/{step}:{digest.hexdigest()[:12]}"
