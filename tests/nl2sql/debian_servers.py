"""What the servers from Debian's packages have in common."""

import os
import shutil
from pathlib import Path


def data_folder(folder: Path, account: str) -> tuple[Path, list[str]]:
    """A new data folder, and the words before a command that uses it.

    The servers refuse to run as root, and CI runs as root: then `account` runs them.
    """
    data = folder / "data"
    data.mkdir()
    if os.getuid():
        return data, []
    for path in (folder, *folder.parents):
        if path.owner() == "root" and path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o111)
    shutil.chown(data, account)
    return data, ["runuser", "-u", account, "--"]
