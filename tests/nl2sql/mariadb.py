"""A real MariaDB server for tests, from Debian's package. It stands in for MySQL, which Debian does not have."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql

from tests.nl2sql.debian_servers import data_folder
from tests.ports import free_port
from tests.waiting import wait_until

SERVER = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
INSTALL = shutil.which("mariadb-install-db")


@contextmanager
def mariadb(folder: Path) -> Iterator[str]:
    """Run a server on 127.0.0.1 and yield the URL of its superuser, without a database."""
    assert SERVER and INSTALL
    data, prefix = data_folder(folder, "nobody")
    port = free_port()
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
