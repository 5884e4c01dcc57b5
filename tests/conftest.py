import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.nl2sql.hotels import DIALECTS, INSTALLED, hotels
from tests.storage import s3

# A shell starts background jobs with SIGINT ignored, which children inherit; then no test could interrupt one.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, s3_server: s3.Server) -> s3.Server:
    """The server, with the AWS environment variables set to it."""
    for name, value in s3.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return s3_server


@pytest.fixture
def bucket(aws: s3.Server, request: pytest.FixtureRequest) -> str:
    name = f"bucket-{abs(hash(request.node.nodeid)) % 10**9}"
    aws.client.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The address of the hotel database in each dialect whose server is installed, with `{db_id}`."""
    with ExitStack() as servers:
        yield {
            dialect: servers.enter_context(hotels(dialect, tmp_path_factory.mktemp(dialect)))
            for dialect in DIALECTS
            if INSTALLED[dialect]
        }
