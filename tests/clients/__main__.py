"""`make clients`: install the clients, run them against a pod, and write the recorded requests and docs/clients.md."""

import tempfile
from pathlib import Path

from tests.clients.programs import install
from tests.clients.record import record
from tests.clients.table import PAGE, page_with, tables
from tests.clients.uses import client_pod, read_recordings, write_recordings


def main() -> None:
    install()
    with tempfile.TemporaryDirectory() as folder:
        pod = client_pod(Path(folder))
        with pod.ready():
            write_recordings(record(pod))
    content = tables(read_recordings())
    PAGE.write_text(page_with(content), "utf-8")
    print(content)


if __name__ == "__main__":
    main()
