"""Connections that are cut at any byte, and stores that differ from Amazon's."""

import hashlib
import http.server
import os
import threading
import time
import traceback
from contextlib import suppress
from email.message import Message
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage import s3_client, s3_store
from chatmetrics.components.storage.files import AlreadyThereError
from chatmetrics.components.storage.store import open_store
from tests.storage import s3

PART = s3.SMALLEST_PART
SIZE = 3 * PART + 4321
# Around the headers' and the bodies' ends of a HEAD and of ranged GET requests.
CUTS = [0, 1, 17, 120, 250, 350, 400, 420, 450, 500, 600, 1500, 20_000, PART + 300]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(s3_client, "LONGEST_PAUSE", 0.001)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "10")


def through(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)


@pytest.mark.parametrize("has_metadata", [True, False], ids=["sha256", "no sha256"])
def test_a_download_survives_a_connection_that_is_cut_at_any_byte(
    has_metadata: bool, aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = {"sha256": hashlib.sha256(large.read_bytes()).hexdigest()} if has_metadata else {}
    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=large.read_bytes(), Metadata=metadata)
    line = s3.CutLine(aws.endpoint, [])
    through(monkeypatch, line.endpoint)
    store = open_store(f"s3://{bucket}", PART)
    for cut in CUTS:
        line.cut([cut] * 8)
        store.get_file("model.gguf", tmp_path / f"there-{cut}")
        assert (tmp_path / f"there-{cut}").read_bytes() == large.read_bytes(), cut
    assert line.connections > 9 * len(CUTS)


@pytest.mark.parametrize("cut", [0, 17, 120, 350, 400, 420, 600])
def test_small_reads_lists_and_writes_survive_it_too(
    cut: int, aws: s3.Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(30_000)
    aws.client.put_object(Bucket=bucket, Key="a/record", Body=data)
    line = s3.CutLine(aws.endpoint, [])
    through(monkeypatch, line.endpoint)
    store = open_store(f"s3://{bucket}")
    for action in ("read", "list", "exists", "stamp", "put", "overwrite"):
        line.cut([cut] * 2)
        match action:
            case "read":
                assert store.read_bytes("a/record") == data
            case "list":
                assert "a/record" in store.list("a/")
            case "exists":
                assert store.exists("a/record")
            case "stamp":
                assert store.stamp("a/record")
            case "put":
                # The first try may have been carried out although its answer was lost.
                store.put_bytes(b"one", f"b/{cut}", overwrite=False)
                assert store.read_bytes(f"b/{cut}") == b"one"
            case "overwrite":
                store.put_bytes(b"two", f"b/{cut}", overwrite=True)
                assert store.read_bytes(f"b/{cut}") == b"two"


def test_each_byte_of_the_headers(aws: s3.Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that is cut within its value is no shorter value."""
    store = open_store(f"s3://{bucket}")
    store.put_bytes(b"0123456789" * 10, "record", overwrite=False)
    stamp = store.stamp("record")
    line = s3.CutLine(aws.endpoint, [])
    through(monkeypatch, line.endpoint)
    store = open_store(f"s3://{bucket}")
    for cut in range(0, 560, 7):
        line.cut([cut])
        assert store.stamp("record") == stamp, cut


def test_an_upload_survives_cut_connections(
    aws: s3.Server, bucket: str, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through(monkeypatch, s3.CutLine(aws.endpoint, [0, 25, 100, 0, 300, 30, 0, 200, 40, 10]).endpoint)
    open_store(f"s3://{bucket}", PART).put_file(large, "model.gguf")
    assert aws.client.get_object(Bucket=bucket, Key="model.gguf")["Body"].read() == large.read_bytes()


def test_a_stalled_connection_is_given_up_and_the_rest_is_requested(
    aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=large.read_bytes())
    monkeypatch.setattr(s3_client, "READ_SECONDS", 0.5)
    line = s3.CutLine(aws.endpoint, [200, 2**62, 1000, 20_000], stalls=True)
    through(monkeypatch, line.endpoint)
    open_store(f"s3://{bucket}", PART).get_file("model.gguf", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == large.read_bytes()


def test_a_download_without_progress_ends_with_one_line(
    aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=large.read_bytes())
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    through(monkeypatch, s3.CutLine(aws.endpoint, [2**62] + [700] * 1000).endpoint)
    with pytest.raises(StorageError, match=r"does not answer .*run again: finished parts are kept"):
        for _ in range(2):
            open_store(f"s3://{bucket}", PART).get_file("model.gguf", tmp_path / "there")
            through(monkeypatch, s3.CutLine(aws.endpoint, [0] * 1000).endpoint)
            (tmp_path / "there").unlink()


@pytest.mark.parametrize("action", ["get_file", "read_bytes"])
def test_a_download_that_makes_progress_too_slowly_ends_with_one_line(
    action: str, aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(large.read_bytes()).hexdigest()
    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=large.read_bytes())
    monkeypatch.setattr(s3_store, "SECONDS_BESIDES", 1.0)
    monkeypatch.setenv("CHATMETRICS_S3_MIN_KIB_PER_SECOND", "1000")
    line = s3.SlowLine(aws.endpoint, pause=0.05)  # a byte each time: no single wait is long
    through(monkeypatch, line.endpoint)
    store, started = open_store(f"s3://{bucket}", PART), time.monotonic()
    with pytest.raises(StorageError, match=r"less than 1000 KiB per second.*CHATMETRICS_S3_MIN_KIB_PER_SECOND"):
        if action == "get_file":
            store.get_file("model.gguf", tmp_path / "there", digest)
        else:
            store.read_bytes("model.gguf")
    assert time.monotonic() - started < 20
    monkeypatch.setattr(s3_store, "SECONDS_BESIDES", 60.0)
    through(monkeypatch, aws.endpoint)
    open_store(f"s3://{bucket}", PART).get_file("model.gguf", tmp_path / "there", digest)
    assert (tmp_path / "there").read_bytes() == large.read_bytes()


def test_a_file_of_another_size_is_not_downloaded(aws: s3.Server, bucket: str, large: Path, tmp_path: Path) -> None:
    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=large.read_bytes())
    store = open_store(f"s3://{bucket}", PART)
    for size in (SIZE - 1, SIZE + 1, 0):
        with pytest.raises(StorageError, match=rf"model\.gguf is damaged: it has {SIZE} bytes instead of {size}"):
            store.get_file("model.gguf", tmp_path / "there", "0" * 64, size)
    assert not list(tmp_path.glob("there*"))
    assert not aws.requests("GET", f"{bucket}/model.gguf")
    store.get_file("model.gguf", tmp_path / "there", size=SIZE)
    assert (tmp_path / "there").read_bytes() == large.read_bytes()


def test_a_store_that_sends_more_than_was_asked_for(
    aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=large.read_bytes())
    other = s3.OtherStore(aws.endpoint, change=lambda method, path, a: (a[0], a[1], a[2] + b"x") if a[0] == 206 else a)
    through(monkeypatch, other.endpoint)
    with pytest.raises(StorageError, match="the store sent more bytes than were requested"):
        open_store(f"s3://{bucket}", PART).get_file("model.gguf", tmp_path / "there")


@pytest.mark.parametrize("is_announced", [True, False], ids=["announced", "endless"])
def test_a_small_file_that_is_too_large_is_not_read_to_its_end(
    is_announced: bool, aws: s3.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.send_header("ETag", '"a"')
            self.send_header("x-amz-request-id", "1")
            self.send_header(*(("Content-Length", str(2**40)) if is_announced else ("Transfer-Encoding", "chunked")))
            self.end_headers()
            with suppress(OSError):
                while sent < 2**30:
                    self.wfile.write(b"x" * 2**16 if is_announced else b"10000\r\n" + b"x" * 2**16 + b"\r\n")
                    sent += 2**16

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        through(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StorageError, match=r"manifest\.json is not read, because it has more than 2 MiB"):
            open_store("s3://models").read_bytes("manifest.json", most=2 * 2**20)
        server.shutdown()
    assert sent < 2**26


def test_a_body_shorter_than_its_length_is_requested_again(
    aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=large.read_bytes())
    lock, short = threading.Lock(), [100, 0, 5000]

    def shorten(method: str, path: str, answer: s3.Answer) -> s3.Answer:
        # The announced range is right, but the body is shorter: the proxy in front of the store lost the rest.
        with lock:
            length = short.pop() if method == "GET" and short else None
        return answer if length is None else (answer[0], answer[1], answer[2][:length])

    other = s3.OtherStore(aws.endpoint, change=shorten)
    through(monkeypatch, other.endpoint)
    open_store(f"s3://{bucket}", PART).get_file("model.gguf", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == large.read_bytes()


def test_a_small_read_of_unknown_length_that_is_cut_is_repeated(
    aws: s3.Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(5000)
    open_store(f"s3://{bucket}").put_bytes(content, "record", overwrite=True)
    head = aws.client.head_object(Bucket=bucket, Key="record")
    cuts = [0, 1, 4999, 5000]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("ETag", head["ETag"])
            self.send_header("x-amz-meta-sha256", head["Metadata"]["sha256"])
            if self.command == "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()  # without a length, the end of the connection is the end of the body
            if self.command == "GET":
                self.wfile.write(content[: cuts.pop(0)])

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        through(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        assert open_store(f"s3://{bucket}").read_bytes("record") == content
        server.shutdown()
    assert not cuts


def test_a_store_that_ignores_ranges_is_named(
    aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=large.read_bytes())

    def whole(method: str, path: str, answer: s3.Answer) -> s3.Answer:
        return (200, answer[1], large.read_bytes()) if method == "GET" else answer

    through(monkeypatch, s3.OtherStore(aws.endpoint, change=whole).endpoint)
    with pytest.raises(StorageError, match="the store ignores Range"):
        open_store(f"s3://{bucket}", PART).get_file("model.gguf", tmp_path / "there")


def renamed(rename: "dict[str, str] | None") -> "type[s3.OtherStore] | object":
    """Change the name of the metadata header; None removes it."""

    def change(method: str, path: str, answer: s3.Answer) -> s3.Answer:
        status, headers, body = answer
        kept = {name: value for name, value in headers.items() if not name.lower().startswith("x-amz-meta-")}
        values = [value for name, value in headers.items() if name.lower().startswith("x-amz-meta-")]
        return status, {**kept, **{name: value for name in rename or {} for value in values}}, body

    return change


@pytest.mark.parametrize("name", ["X-Amz-Meta-Sha256", "x-amz-meta-SHA256", "X-AMZ-META-SHA256", None])
def test_a_store_that_changes_or_strips_metadata(
    name: str | None, aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = renamed({name: ""} if name else None)
    other = s3.OtherStore(aws.endpoint, change=change)  # type: ignore[arg-type]
    through(monkeypatch, other.endpoint)
    store = open_store(f"s3://{bucket}", PART)
    small = tmp_path / "small"
    small.write_bytes(b"{}")
    for _ in range(2):
        for path in (large, small):
            store.put_file(path, path.name)
    sent = [line for line in other.requests if line.startswith("PUT")]
    assert len(sent) == 4 + 1, "a file was uploaded twice"
    assert not [line for line in other.requests if line.startswith("DELETE")]
    store.get_file("model.gguf", tmp_path / "back", hashlib.sha256(large.read_bytes()).hexdigest())
    assert (tmp_path / "back").read_bytes() == large.read_bytes()

    before = large.read_bytes()
    for changed in (before + b"x", before[:-1] + bytes([before[-1] ^ 1])):
        large.write_bytes(changed)
        with pytest.raises(AlreadyThereError, match="has other content"):
            store.put_file(large, "model.gguf")
    assert aws.client.get_object(Bucket=bucket, Key="model.gguf")["Body"].read() == before


@pytest.mark.parametrize("form", ['"{0}"', "{0},{0}", "{0}, {0}", "=?UTF-8?Q?{0}?=", "{0:.32}", "", "none"])
def test_a_store_that_changes_the_checksum_in_the_metadata(
    form: str, aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(method: str, path: str, answer: s3.Answer) -> s3.Answer:
        status, headers, body = answer
        names = {name: name.lower().startswith("x-amz-meta-") for name in headers}
        return status, {name: form.format(headers[name]) if names[name] else headers[name] for name in headers}, body

    through(monkeypatch, s3.OtherStore(aws.endpoint, change=change).endpoint)
    store = open_store(f"s3://{bucket}", PART)
    for _ in range(2):
        store.put_file(large, "model.gguf")
    store.get_file("model.gguf", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == store.read_bytes("model.gguf") == large.read_bytes()


def test_a_proxy_that_weakens_etags(
    aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(method: str, path: str, answer: s3.Answer) -> s3.Answer:
        status, headers, body = answer
        return status, {name: f"W/{text}" if name.lower() == "etag" else text for name, text in headers.items()}, body

    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=large.read_bytes())
    through(monkeypatch, s3.OtherStore(aws.endpoint, change=change).endpoint)
    open_store(f"s3://{bucket}", PART).get_file("model.gguf", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_a_proxy_that_hides_the_size(
    aws: s3.Server, bucket: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(method: str, path: str, answer: s3.Answer) -> s3.Answer:
        status, headers, body = answer
        return status, {name: text for name, text in headers.items() if name.lower() != "content-length"}, body

    aws.client.put_object(Bucket=bucket, Key="model.gguf", Body=large.read_bytes())
    through(monkeypatch, s3.OtherStore(aws.endpoint, change=change).endpoint)
    with pytest.raises(StorageError, match="does not tell its size; check for a proxy"):
        open_store(f"s3://{bucket}", PART).get_file("model.gguf", tmp_path / "back")


def test_without_metadata_and_with_etags_of_another_form_the_object_is_read(
    aws: s3.Server, bucket: str, large: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def change(method: str, path: str, answer: s3.Answer) -> s3.Answer:
        status, headers, body = answer
        headers = {name: value for name, value in headers.items() if not name.lower().startswith("x-amz-meta-")}
        return (
            status,
            {**headers, **({"ETag": '"of-the-store"'} if "ETag" in headers and "?" not in path else {})},
            body,
        )

    def ask(method: str, path: str, headers: Message) -> None:
        if "If-Match" in headers:
            del headers["If-Match"]  # the store's own ETag would fit

    other = s3.OtherStore(aws.endpoint, answer=ask, change=change)
    through(monkeypatch, other.endpoint)
    store = open_store(f"s3://{bucket}", PART)
    for _ in range(2):
        store.put_file(large, "model.gguf")
    assert len([line for line in other.requests if line.startswith("PUT")]) == 4
    assert "the object is read to compare it" in capfd.readouterr().err
    large.write_bytes(bytes(SIZE))
    with pytest.raises(AlreadyThereError):
        store.put_file(large, "model.gguf")


@pytest.mark.parametrize(
    "refusal",
    [
        s3.s3_error(403, "AccessDenied"),
        s3.s3_error(501, "NotImplemented"),
        s3.s3_error(405, "MethodNotAllowed"),
        s3.s3_error(400, "InvalidArgument"),
        (403, {}, b""),
        (501, {}, b""),
        (403, {"Content-Type": "text/html"}, b"<html><title>Firewall</title></html>"),
        (200, {"Content-Type": "text/html"}, b"<html><title>Console</title></html>"),
    ],
)
@pytest.mark.parametrize("what", ["?uploads", "uploadId="])
def test_unfinished_uploads_that_cannot_be_listed_are_a_warning(
    what: str,
    refusal: s3.Answer,
    aws: s3.Server,
    bucket: str,
    large: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    begun = aws.client.create_multipart_upload(Bucket=bucket, Key="model.gguf")
    part = {"Bucket": bucket, "Key": "model.gguf", "UploadId": begun["UploadId"], "PartNumber": 1}
    aws.client.upload_part(**part, Body=large.read_bytes()[:PART])

    def refuse(method: str, path: str, headers: Message) -> s3.Answer | None:
        return refusal if method == "GET" and what in path else None

    through(monkeypatch, s3.OtherStore(aws.endpoint, answer=refuse).endpoint)
    store = open_store(f"s3://{bucket}", PART)
    store.put_file(large, "model.gguf")
    assert aws.client.get_object(Bucket=bucket, Key="model.gguf")["Body"].read() == large.read_bytes()
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "unfinished uploads cannot be listed" in warnings[0]
    assert store.why_not_resumable("other")  # type: ignore[attr-defined]
    through(monkeypatch, aws.endpoint)
    assert open_store(f"s3://{bucket}", PART).why_not_resumable("other") == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "refusal",
    [
        s3.s3_error(501, "NotImplemented"),
        s3.s3_error(400, "InvalidArgument"),
        (501, {}, b""),
        s3.s3_error(501, "XNotImplemented"),
        s3.s3_error(400, "UnsupportedArgument"),
        s3.s3_error(405, "MethodNotAllowed"),
    ],
)
def test_a_store_without_conditional_writes(
    refusal: s3.Answer,
    aws: s3.Server,
    bucket: str,
    large: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refuse(method: str, path: str, headers: Message) -> s3.Answer | None:
        return refusal if "If-None-Match" in headers else None

    other = s3.OtherStore(aws.endpoint, answer=refuse)
    through(monkeypatch, other.endpoint)
    store = open_store(f"s3://{bucket}", PART)
    store.put_file(large, "model.gguf")
    store.put_bytes(b"one", "record", overwrite=False)
    assert len([line for line in other.requests if "partNumber" in line]) == 4, "a part was sent twice"
    for _ in range(2):
        with pytest.raises(AlreadyThereError):
            store.put_bytes(b"two", "record", overwrite=False)
    assert store.read_bytes("record") == b"one"
    assert capfd.readouterr().err.count("warning: ") == 1


PAGE = b"<!DOCTYPE html><html><head><title>MinIO Console</title></head><body></body></html>"
LOGIN = b"<html><title>Sign in</title><form><input type=password></form></html>"
IMPOSTORS: dict[str, tuple[s3.Answer, str]] = {
    "console": ((200, {"Content-Type": "text/html"}, PAGE), 'a web page titled "MinIO Console"'),
    "console with ETag": ((200, {"Content-Type": "text/html", "ETag": '"1"'}, PAGE), 'titled "MinIO Console"'),
    "login page": ((200, {"Content-Type": "text/html; charset=utf-8"}, LOGIN), 'a login page titled "Sign in"'),
    "page without a type": ((200, {}, PAGE), 'a web page titled "MinIO Console"'),
    "redirect": ((302, {"Location": "https://sso.example.com/realms?a=b"}, b""), "a redirect to"),
    "moved": ((301, {"Location": "https://u:secret-pw@s3.example.com/x"}, b""), "a redirect to https://s3.example.com"),
    "307": ((307, {"Location": "/login"}, b""), "a redirect to a login page at another path"),
    "308 page": ((308, {"Location": "https://s3.example.com/x"}, PAGE), "a redirect to https://s3.example.com"),
    "JSON": ((200, {"Content-Type": "application/json"}, b'{"status": "ok"}'), "JSON without the expected fields"),
    "a list": ((200, {"Content-Type": "application/json"}, b"[]"), "JSON that is a list"),
    "empty": ((200, {}, b""), "an empty answer"),
    "binary": ((200, {"Content-Type": "image/png"}, b"\x89PNG\0\1\2"), "binary data (image/png)"),
    "other XML": ((200, {"Content-Type": "text/xml"}, b"<rss><channel/></rss>"), "XML (rss)"),
    "page with 403": ((403, {"Content-Type": "text/html"}, LOGIN), 'a login page titled "Sign in" (status 403)'),
    "page with 404": (
        (404, {"Content-Type": "text/html"}, b"<h1>nginx</h1>"),
        "a web page without a title (status 404)",
    ),
    "text with 405": ((405, {}, b"no"), "plain text (status 405)"),
}


@pytest.mark.parametrize("kind", IMPOSTORS)
@pytest.mark.parametrize("action", ["get", "read", "list", "put", "put_large"])
def test_what_answers_in_place_of_s3_is_named(
    action: str, kind: str, aws: s3.Server, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, words = IMPOSTORS[kind]
    through(monkeypatch, s3.OtherStore(aws.endpoint, answer=lambda *_: answer).endpoint)
    store = open_store("s3://bucket/prefix", PART)
    actions = {
        "get": lambda: store.get_file("key", tmp_path / "there"),
        "read": lambda: store.read_bytes("key"),
        "list": lambda: store.list(""),
        "put": lambda: store.put_bytes(b"x", "key", overwrite=False),
        "put_large": lambda: store.put_file(large, "key"),
    }
    with pytest.raises(StorageError) as caught:
        actions[action]()
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message
    assert "secret-pw" not in message
    assert "check AWS_ENDPOINT_URL_S3" in message
    assert not (tmp_path / "there").exists()


REGION = s3.s3_error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")
CLOCK = s3.s3_error(403, "RequestTimeTooSkewed", headers={"Date": "Sun, 01 Jan 2023 00:00:00 GMT"})
REASONS: dict[str, tuple[s3.Answer, str]] = {
    "region": (REGION, "is in eu-west-1, not in us-east-1 .*cluster.s3_region"),
    "moved": (s3.s3_error(301, "PermanentRedirect"), "is in another region, not in us-east-1"),
    "clock": (CLOCK, r"the time of this machine, which is \d+ minutes ahead .*set its clock"),
    "path style": (s3.s3_error(403, "SecondLevelDomainForbidden"), "refused the path style .*S3_ADDRESSING=virtual"),
    "key": (s3.s3_error(403, "InvalidAccessKeyId"), "refused the credentials .InvalidAccessKeyId"),
    "signature": (s3.s3_error(403, "SignatureDoesNotMatch"), "refused the credentials .SignatureDoesNotMatch"),
    "expired": (s3.s3_error(400, "ExpiredToken"), "refused the credentials .ExpiredToken"),
    "denied": (s3.s3_error(403, "AccessDenied"), "AccessDenied.*check AWS_ACCESS_KEY_ID and its rights"),
    "bucket": (s3.s3_error(404, "NoSuchBucket"), "the bucket bucket does not exist"),
}


@pytest.mark.parametrize("kind", REASONS)
@pytest.mark.parametrize("action", ["get", "list", "put"])
def test_the_true_reason_of_a_refusal(
    action: str, kind: str, aws: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, words = REASONS[kind]
    through(monkeypatch, s3.OtherStore(aws.endpoint, answer=lambda *_: answer).endpoint)
    store = open_store("s3://bucket/prefix")
    (tmp_path / "small").write_bytes(b"x")
    with pytest.raises(StorageError, match=words) as caught:
        {
            "get": lambda: store.get_file("key", tmp_path / "there"),
            "list": lambda: store.list(""),
            "put": lambda: store.put_bytes(b"x", "key", overwrite=False),
        }[action]()
    assert "\n" not in str(caught.value)


def test_the_addressing_style(aws: s3.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, "http://store:9000")
    for style, url in (
        ("path", "store:9000/bucket/x"),
        ("virtual", "bucket.store:9000/x"),
        ("auto", "store:9000/bucket"),
    ):
        monkeypatch.setenv("CHATMETRICS_S3_ADDRESSING", f" {style}\n")
        place = {"Bucket": "bucket", "Key": "x"}
        assert s3_client.s3_client().generate_presigned_url("get_object", place).startswith(f"http://{url}")
    monkeypatch.setenv("CHATMETRICS_S3_ADDRESSING", "virtual-host")
    with pytest.raises(InputError, match="CHATMETRICS_S3_ADDRESSING: write auto, path or virtual"):
        open_store("s3://bucket")


HIDDEN = "hunter2-Xyzzy"
PROCESS = "[default]\ncredential_process = "
CREDENTIALS: dict[str, tuple[dict[str, str], str, str]] = {
    "role without a token": (
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/none/token", "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x"},
        "",
        "/none/token: No such file or directory",
    ),
    "role that is refused": (
        {"AWS_WEB_IDENTITY_TOKEN_FILE": __file__, "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x"},
        "",
        "InvalidIdentityToken",
    ),
    "no program": ({}, f"{PROCESS}/none/helper {HIDDEN}\n", "/none/helper: No such file or directory"),
    "program fails": ({}, f"{PROCESS}sh -c 'echo {HIDDEN} >&2; exit 1'\n", "CredentialRetrievalError"),
    "program prints text": ({}, f"{PROCESS}echo {HIDDEN}\n", "JSONDecodeError"),
    "half a key": ({}, f"[default]\naws_access_key_id = {HIDDEN}\n", "PartialCredentialsError"),
    "address of a pod": ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.org/x"}, "", "ValueError"),
}


@pytest.mark.parametrize("kind", CREDENTIALS)
def test_credentials_that_cannot_be_had_are_not_a_fault_of_the_store(
    kind: str,
    aws: s3.Server,
    large: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    variables, config, words = CREDENTIALS[kind]
    refusal = (403, {}, b"<ErrorResponse><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>")
    sts = s3.OtherStore(aws.endpoint, answer=lambda *_: refusal)
    (tmp_path / "config").write_text(config)
    files = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_SHARED_CREDENTIALS_FILE": "/none"}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in {**files, **variables, "AWS_ENDPOINT_URL_STS": sts.endpoint}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=f"gives no credentials .*{words}") as caught:
        open_store("s3://bucket", PART).put_file(large, "model.gguf")
    assert "\n" not in str(caught.value)
    assert HIDDEN not in "".join(traceback.format_exception(caught.value))
    assert not caplog.records, "botocore logs a traceback"


@pytest.mark.parametrize(
    "url",
    [
        "minio:9000",
        "minio",
        "htp://minio",
        "http://",
        "http://minio:90x0",
        "http://minio:99999",
        "http://[::1",
        "s3://b",
    ],
)
def test_an_endpoint_that_is_no_url_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, url)
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL_S3: not a URL"):
        open_store("s3://bucket")


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_ca_bundle_that_cannot_be_used_is_named(
    content: str | None, aws: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
    with pytest.raises(InputError, match=f"AWS_CA_BUNDLE: {path}"):
        open_store("s3://bucket")


def test_tls_to_a_port_without_it(aws: s3.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, aws.endpoint.replace("http://", "https://"))
    with pytest.raises(StorageError, match="does not speak TLS; write http://"):
        open_store("s3://bucket").read_bytes("x")
