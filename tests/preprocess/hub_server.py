"""A server with one dataset, which answers as the Hugging Face Hub does (https://huggingface.co/docs/hub/api)."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "shops/questions"


class Hub(ThreadingHTTPServer):
    """The server; `commits` has the files of each revision, of which the last one is the branch main."""

    def __init__(self, commits: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits = commits
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        api, files = f"/api/datasets/{NAME}", f"/datasets/{NAME}/resolve/"
        if path.startswith(files):
            revision, _, name = path.removeprefix(files).partition("/")
            self._send_file(revision, name)
        elif path.startswith(f"{api}/revision/"):
            self._send_info(path.rpartition("/")[2])
        elif path.startswith(f"{api}/tree/"):
            self._send_tree(path.rpartition("/")[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _commit(self, revision: str) -> str | None:
        *_, last = self.server.commits
        return last if revision == "main" else revision if revision in self.server.commits else None

    def _send_info(self, revision: str) -> None:
        commit = self._commit(revision)
        if commit is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        info = {"id": NAME, "sha": commit, "siblings": [], "private": False, "disabled": False, "tags": []}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _send_tree(self, commit: str) -> None:
        folder = self.server.commits[commit]
        files = [
            {
                "type": "file",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "oid": _tag(path),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"})

    def _send_file(self, revision: str, name: str) -> None:
        commit = self._commit(revision)
        path = self.server.commits[commit] / name if commit else Path("none")
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        self._send(200, path.read_bytes(), {"X-Repo-Commit": str(commit), "ETag": f'"{_tag(path)}"'})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


def _tag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def hub(commits: dict[str, Path]) -> Iterator[Hub]:
    """Context manager: the running server."""
    server = Hub(commits)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
