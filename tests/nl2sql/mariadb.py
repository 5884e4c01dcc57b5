"""A real MariaDB server for tests, from Debian's package. It stands in for MySQL, which Debian does not have."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql

from tests.ports import free_port
from tests.waiting import wait_until

SERVER = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
INSTALL = shutil.which("mariadb-install-db")


@contextmanager
def mariadb(folder: Path) -> Iterator[str]:
    """Run a server on 127.0.0.1 and yield the URL of its superuser, without a database."""
    assert SERVER and INSTALL
    user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    data, port = folder / "data", free_port()
    data.mkdir()
    prefix = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []
    if prefix:
        for path in (folder, *folder.parents):
            if path.owner() == "root" and path.is_relative_to("/tmp") and path != Path("/tmp"):
                path.chmod(path.stat().st_mode | 0o111)
        shutil.chown(data, user)
    options = ["--no-defaults", f"--datadir={data}"]
    install = [INSTALL, *options, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run([*prefix, *install], check=True, capture_output=True)
    server = subprocess.Popen(
        [*prefix, SERVER, *options, f"--socket={data}/s", f"--port={port}", "--bind-address=127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: server.poll() is not None or _accepts(port), 120)
        assert server.poll() is None
        yield f"mysql+pymysql://root@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def _accepts(port: int) -> bool:
    try:
        pymysql.connect(host="127.0.0.1", port=port, user="root").close()
    except pymysql.Error:
        return False
    return True
