"""The connection to S3: settings, complete answers, retries, and the true reason of a failure in one line.

boto3 takes any answer with status 200 for S3's, follows redirects without end, retries only until the headers have
arrived, and knows no reason of a refused HEAD request, which has no body.
"""

import http.client
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

import boto3
import botocore.session
import urllib3
from botocore.awsrequest import AWSHTTPConnection, AWSHTTPSConnection
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError

from chatmetrics.components.credentials import checked_ca_file, read_secret
from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.responder import UnexpectedAnswer, what_answered
from chatmetrics.components.storage.store import S3_ADDRESSING as ADDRESSING

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ATTEMPTS = "AWS_MAX_ATTEMPTS"
# In a cluster, AWS_MAX_ATTEMPTS is 30, so that a job survives minutes without S3. A user at a terminal should see the
# error within seconds.
DEFAULT_ATTEMPTS = 4
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 20.0  # seconds
CONNECT_SECONDS, READ_SECONDS = 10, 60
CONCURRENCY = 8

Done = TypeVar("Done")
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_PLAIN = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", ADDRESSING)
_URLS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_CA_FILES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
_NO_CONNECTION = (
    *(NoConnectionError, HTTPClientError, IncompleteReadError, urllib3.exceptions.HTTPError),
    ResponseParserError,  # an answer of unknown length was cut
)
_PERMANENT_TLS = re.compile("CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|certificate verify failed|record layer")
_TRANSIENT = {
    *("408", "429", "500", "502", "503", "504", "InternalError", "InternalFailure", "ServiceUnavailable", "SlowDown"),
    *("RequestTimeout", "RequestTimeoutException", "Throttling", "ThrottlingException", "TooManyRequests"),
    *("BadDigest", "IncompleteBody", "XMinioServerNotInitialized", "OperationAborted"),
}
_ROOT = re.compile(rb"\s*(?:<\?.*?\?>\s*)?<([A-Za-z][\w:.-]*)", re.DOTALL)
_ERROR_FIELD = r"<{0}>\s*([^<]*?)\s*</{0}>"


class _CompleteResponse(http.client.HTTPResponse):
    """A response whose headers are complete. Python takes the end of the connection for the end of the headers."""

    def begin(self) -> None:
        """Read status and headers.

        Raises:
            http.client.RemoteDisconnected: the connection was cut before the end of the headers.
        """
        recorder = _LastLine(self.fp)
        self.fp = cast("Any", recorder)
        super().begin()
        if cast("Any", self.fp) is recorder:
            self.fp = recorder.file
        if recorder.last.strip():
            raise http.client.RemoteDisconnected("the connection was cut within the headers")


class _LastLine:
    """A file that remembers the last line that was read from it."""

    def __init__(self, file: Any) -> None:
        self.file, self.last = file, b""

    def readline(self, limit: int = -1) -> bytes:
        line = bytes(self.file.readline(limit))
        if line:
            self.last = line
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


# The only place where boto3's connections can be told how to read a response.
for _connection in (AWSHTTPConnection, AWSHTTPSConnection):
    _connection.response_class = cast("Any", _CompleteResponse)


class _Descriptions(Loader):
    """botocore's descriptions of S3, read once per process: reading them is most of the time that a client takes."""

    @property
    def search_paths(self) -> list[str]:
        """Where they are. A copy, because boto3 appends its own folder for each client."""
        return list(super().search_paths)


_descriptions = _Descriptions()


def s3_client(with_redirects: bool = True) -> "S3Client":
    """Return a client with the endpoint, region and credentials of the standard AWS_* variables and files.

    It sends each request once: `retried` repeats it.

    Args:
        with_redirects: whether boto3 may ask again in the region that an answer names; if not, it is an error.

    Raises:
        InputError: a key, an endpoint, the addressing style or the CA file cannot be used.
        StorageError: the AWS environment is unusable, or gives no credentials.
    """
    _clean_environment()
    addressing = os.environ.get(ADDRESSING) or "auto"
    if addressing not in ("auto", "path", "virtual"):
        raise InputError(f"{ADDRESSING}: write auto, path or virtual, not {addressing!r}")
    config = Config(
        # S3-compatible stores do not support AWS's newer checksum headers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=CONCURRENCY,
        s3={"addressing_style": cast("Literal['auto', 'path', 'virtual']", addressing)},
    )
    try:
        # A new session: boto3.client() would keep using the credentials from the start of the process.
        core = botocore.session.get_session()
        core.register_component("data_loader", _descriptions)
        session = boto3.Session(botocore_session=core)
        _check_credentials(session)
        client = session.client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(
            f"the AWS environment is unusable ({type(error).__name__}); "
            "check AWS_ENDPOINT_URL_S3, AWS_REGION and AWS_PROFILE"
        ) from error
    client.meta.events.register("before-sign.s3", _without_expect)
    client.meta.events.register(
        "before-parse.s3",
        lambda operation_model, response_dict, **_: _check_answer(operation_model, response_dict, with_redirects),
    )
    return client


def retried(call: Callable[[], Done]) -> Done:
    """Return the result of a call to S3, repeated with growing pauses while its failure can be transient."""
    for attempt in range(1, attempts() + 1):
        try:
            return call()
        except (ClientError, *_NO_CONNECTION) as error:
            if attempt == attempts() or not is_transient(error):
                raise
            pause(attempt)
    raise AssertionError("unreachable")


def attempts() -> int:
    """How often a request is tried.

    Raises:
        InputError: AWS_MAX_ATTEMPTS is not a positive number.
    """
    given = os.environ.get(ATTEMPTS, "").strip()
    if given and not (given.isdecimal() and int(given)):
        raise InputError(f"{ATTEMPTS}: write a positive number, not {given!r}")
    return int(given or DEFAULT_ATTEMPTS)


def pause(attempt: int) -> None:
    """Wait after a failed attempt (from 1): a random part of a time that doubles, so that clients do not keep step."""
    time.sleep(random.random() * min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))


def is_transient(error: Exception) -> bool:
    """Whether the same request can succeed a little later."""
    if isinstance(error, ClientError):
        return error_code(error) in _TRANSIENT
    if isinstance(error, SSLError):
        return not _PERMANENT_TLS.search(str(error))
    return isinstance(error, (*_NO_CONNECTION, OSError))


def error_code(error: ClientError) -> str:
    """S3's code of an error, or the HTTP status if there is none."""
    return str(error.response.get("Error", {}).get("Code") or "an unknown error")


@contextmanager
def explained(client: "S3Client", bucket: str, key: str, uri: str) -> Iterator[None]:
    """Convert boto's errors to a StorageError with one line. Their own text may contain credentials or headers.

    Args:
        client: the client that is used in the block.
        bucket: the bucket.
        key: the key that is used in the block, for a question about the reason of a failure.
        uri: what the message begins with.
    """
    endpoint = client.meta.endpoint_url.split("@")[-1]  # an endpoint's URL may contain a password before the host
    try:
        yield
    except ClientError as error:
        reason: Exception = _reason_by_get(bucket, key, error) if error_code(error).isdecimal() else error
        if isinstance(reason, ClientError):
            raise StorageError(f"{uri}: {_advice(reason, bucket, endpoint, client.meta.region_name)}") from error
        raise StorageError(f"{uri}: {_other_answer(endpoint, reason)}") from error
    except UnexpectedAnswer as error:
        raise StorageError(f"{uri}: {_other_answer(endpoint, error)}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StorageError(
            f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
        ) from error
    except SSLError as error:
        raise StorageError(f"{uri}: {_tls_advice(error, endpoint)}") from error
    except _NO_CONNECTION as error:
        raise StorageError(
            f"{uri}: {endpoint} does not answer ({type(error).__name__}); "
            "check AWS_ENDPOINT_URL_S3 and the network, then run again: finished parts are kept"
        ) from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: the request failed ({type(error).__name__})") from error
    except UnicodeError as error:
        raise StorageError(f"{uri}: the credentials have a character that cannot be sent; check AWS's files") from error


def _clean_environment() -> None:
    """Remove white space around AWS's variables, which boto3 would send or sign, and check what can be checked.

    Raises:
        InputError: a key cannot be sent, an endpoint is not a URL, or a CA file cannot be used.
    """
    values = {name: read_secret(name) for name in _SECRETS}
    values |= {name: os.environ.get(name, "").strip() for name in _PLAIN}
    values |= {name: checked_ca_file(os.environ.get(name, ""), name) for name in _CA_FILES}
    for name in _URLS:
        if values[name] and not _is_url(values[name]):
            raise InputError(f"{name}: not a URL; write one as in https://HOST:PORT")
    for name, value in values.items():
        if value != os.environ.get(name, ""):
            os.environ[name] = value
        if not value:
            os.environ.pop(name, None)


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # the port is not a number, or too large
        return False


def _check_credentials(session: boto3.Session) -> None:
    """Get the credentials, so that a failure is not reported as one of the store or of the file in use.

    Raises:
        StorageError: a file, a program or a service that should give them does not.
    """
    logging.getLogger("botocore.credentials").setLevel(logging.CRITICAL)  # it logs a traceback before it raises
    try:
        if credentials := session.get_credentials():
            retried(credentials.get_frozen_credentials)
    except (BotoCoreError, ClientError, ResponseParserError, ValueError, LookupError, OSError) as error:
        reason = error_code(error) if isinstance(error, ClientError) else type(error).__name__
        if isinstance(error, OSError) and error.filename:
            reason = f"{error.filename}: {error.strerror}"
        raise StorageError(
            f"AWS's configuration gives no credentials ({reason}); check AWS_PROFILE, the files in ~/.aws, and the "
            "variables of a cloud's role"
        ) from None  # a traceback would show the answer of a program or service, which may hold a secret


def _without_expect(request: Any, **_: Any) -> None:
    """Send no `Expect: 100-continue`: boto3 waits forever for the end of an interim answer that is cut."""
    if "Expect" in request.headers:
        del request.headers["Expect"]


def _check_answer(operation: Any, answer: dict[str, Any], with_redirects: bool) -> None:
    """Raise an error for an answer that S3 cannot have sent, and for one that boto3 would ask about without end.

    Raises:
        IncompleteReadError: the connection was cut within the body.
        ClientError: S3 refused in a way that boto3 misunderstands; the code is the status if the answer has no body.
        UnexpectedAnswer: something else answered.
    """
    status, headers, body = answer["status_code"], answer["headers"], answer["body"]
    length = headers.get("content-length", "")
    if (
        isinstance(body, bytes)
        and length.isdecimal()
        and operation.http["method"] != "HEAD"
        and len(body) < int(length)
    ):
        raise IncompleteReadError(actual_bytes=len(body), expected_bytes=int(length))  # boto3 would take it as whole
    if status < 300:
        _check_success(operation, status, headers, body)
        return
    code = _field("Code", body)
    names_region = bool(headers.get("x-amz-bucket-region"))
    if code or (not body and operation.http["method"] == "HEAD"):
        is_about_region = 300 <= status < 400 or status == 400
        if is_about_region and not (with_redirects and names_region):
            raise _refusal(operation.name, status, headers, body)
    elif status < 500 and (body.strip() or status < 400) and status not in (408, 429):
        raise UnexpectedAnswer(what_answered(status, headers, body))


def _check_success(operation: Any, status: int, headers: Mapping[str, str], body: Any) -> None:
    name = operation.name
    # Objects that people store as pages have this type too, but then S3's own headers are there.
    is_page = headers.get("content-type", "").startswith("text/html") and not any(
        header.lower().startswith("x-amz") for header in headers
    )
    if name in ("HeadObject", "GetObject", "PutObject", "UploadPart"):
        is_other = is_page or not headers.get("etag")
    elif name.startswith(("List", "Create", "Complete")):
        root = _ROOT.match(body)
        is_other = not (root and root[1].endswith((b"Result", b"Response", b"Error")))
    else:
        is_other = is_page
    if not is_other:
        return
    if name == "HeadObject":
        raise _refusal(name, status, headers, b"")  # the reason is then asked for with GET
    raise UnexpectedAnswer(what_answered(status, headers, body.read(4096) if hasattr(body, "read") else body))


def _refusal(operation: str, status: int, headers: Mapping[str, str], body: bytes) -> ClientError:
    error = {"Code": _field("Code", body) or str(status), "Region": _field("Region", body)}
    error["Region"] = error["Region"] or headers.get("x-amz-bucket-region", "")
    response: Any = {
        "Error": error,
        "ResponseMetadata": {
            "HTTPStatusCode": status,
            "HTTPHeaders": {name.lower(): headers[name] for name in headers},
        },
    }
    return ClientError(response, operation)


def _field(name: str, body: bytes) -> str:
    found = re.search(_ERROR_FIELD.format(name).encode(), body) if b"<Error" in body[:500] else None
    return found[1].decode("utf-8", "replace")[:80] if found else ""


def _reason_by_get(bucket: str, key: str, refused: ClientError) -> Exception:
    """Ask again with GET for the reason of a refused HEAD request, whose answer has no body.

    Returns:
        The error of the GET request; the given error if that gives no reason either.
    """
    try:
        retried(lambda: s3_client(with_redirects=False).get_object(Bucket=bucket, Key=key or "/", Range="bytes=0-0"))
    except (ClientError, UnexpectedAnswer) as error:
        return error
    except (BotoCoreError, urllib3.exceptions.HTTPError, UnicodeError):
        pass
    return refused


def _advice(error: ClientError, bucket: str, endpoint: str, region: str) -> str:
    code = error_code(error)
    details: Mapping[str, Any] = error.response.get("Error", {})
    match code:
        case "NoSuchBucket":
            return f"the bucket {bucket} does not exist at {endpoint}; create it or correct the URI"
        case "NoSuchKey" | "404":
            return f"the object does not exist at {endpoint}; check the URI"
        case "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" | "301":
            right = details.get("Region") or "another region"
            return (
                f"{bucket} at {endpoint} is in {right}, not in {region} ({code}); set AWS_REGION, and for pods "
                "cluster.s3_region or the chart's s3.region"
            )
        case "RequestTimeTooSkewed":
            return f"{endpoint} refused the time of this machine{_clock_difference(error)} ({code}); set its clock"
        case "SecondLevelDomainForbidden" | "PathStyleDomainForbidden" | "PathStyleRequestNotAllowed":
            return f"{endpoint} refused the path style ({code}); {_addressing_advice('virtual')}"
        case "InvalidBucketName" | "MethodNotAllowed" | "405":
            return (
                f"{endpoint} answered {code}; if it needs the other addressing style: {_addressing_advice('virtual')}"
            )
        case "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired":
            return f"{endpoint} refused the credentials ({code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        case "AccessDenied" | "AllAccessDisabled" | "403":
            return (
                f"{endpoint} refused the credentials ({code}); check AWS_ACCESS_KEY_ID and its rights, and the "
                f"addressing style ({ADDRESSING})"
            )
        case "PreconditionFailed" | "412":
            return "the object changed while it was read; run again"
        case "NotImplemented" | "501":
            return f"{endpoint} does not support the request ({code})"
        case _:
            return f"{endpoint} answered {code}"


def _addressing_advice(style: str) -> str:
    return f"set {ADDRESSING}={style}, and for pods cluster.s3_addressing or the chart's s3.addressing"


def _clock_difference(error: ClientError) -> str:
    date = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        minutes = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds() / 60
    except (TypeError, ValueError):
        return ""
    return f", which is {abs(minutes):.0f} minutes {'ahead' if minutes > 0 else 'behind'}"


def _tls_advice(error: SSLError, endpoint: str) -> str:
    if "WRONG_VERSION_NUMBER" in str(error) or "record layer" in str(error):
        return f"{endpoint} does not speak TLS; write http:// in AWS_ENDPOINT_URL_S3"
    if "verify failed" in str(error).lower() or "VERIFY_FAILED" in str(error):
        return (
            f"the certificate of {endpoint} is not trusted; set AWS_CA_BUNDLE to a file with its authority, and for "
            "pods cluster.s3_ca_config_map or the chart's s3.caConfigMap"
        )
    return f"{endpoint} does not answer (SSLError); check AWS_ENDPOINT_URL_S3 and the network"


def _other_answer(endpoint: str, what: Exception) -> str:
    host = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    hint = " (MinIO's console has a port of its own)" if "page" in str(what) and host.port else ""
    return f"{endpoint} sent {what} instead of an answer of S3; check AWS_ENDPOINT_URL_S3{hint}"
