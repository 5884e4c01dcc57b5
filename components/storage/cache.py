"""The folder of files that can be fetched or computed again."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder of one kind of files below $XDG_CACHE_HOME/chatmetrics, or ~/.cache/chatmetrics. It may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatmetrics" / kind
