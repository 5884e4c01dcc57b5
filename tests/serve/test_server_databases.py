"""/ask about databases on servers and in DuckDB files, with a real Ollama and real servers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.acceptance_test import AcceptanceTest, Question
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.published_schema import PublishedSchema
from tests.nl2sql.hotels import DIALECTS
from tests.ports import free_port
from tests.serve.pods import TOKEN, RunningPod, needs_ollama, published

pytestmark = needs_ollama
SQL = ["SELECT", " name", ", price", " FROM", " hotel", " ORDER", " BY", " id"]
ROWS = [["和平饭店", 10.5], ["Ritz", 20], ["Adler", 0.25]]


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory, addresses: dict[str, str]) -> Iterator[RunningPod]:
    folder = tmp_path_factory.mktemp("servers")
    model = published(folder, "1", SQL, None, context_length=2048, cutoff_length=2048, sample_values=2)
    databases = {dialect: address.format(db_id="hotels") for dialect, address in addresses.items()}
    databases["gone"] = f"postgresql+psycopg://reader@127.0.0.1:{free_port()}/gone"
    settings = {"databases": databases, "query": {"seconds": 3, "parallel": 3, "maxRows": 3}}
    pod = RunningPod(folder / "pod", [{"name": "hotel", "uri": model, "threshold": 0}], settings)
    with pod.ready():
        yield pod


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_question_is_answered_from_the_server(dialect: str, pod: RunningPod, addresses: dict[str, str]) -> None:
    if dialect not in addresses:
        pytest.skip(f"{dialect} is not installed")
    answer = pod.post("/ask", {"question": "有哪些酒店？", "database": dialect}).json()
    assert "rows" in answer, pod.log()
    assert (answer["rows"], answer["failure"]) == (ROWS, None), answer
    shown = pod.get(f"/databases/{dialect}").json()
    assert shown["name"] == dialect and "CREATE TABLE hotel (" in shown["ddl"]


def test_many_questions_share_the_connections(pod: RunningPod, addresses: dict[str, str]) -> None:
    asked = [dialect for dialect in addresses for _ in range(6)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda name: pod.post("/ask", {"question": "x", "database": name}).json(), asked))
    assert [answer["rows"] for answer in answers] == [ROWS] * len(asked)


def test_a_server_that_is_not_available_is_no_secret_to_clients_but_its_address_is(pod: RunningPod) -> None:
    answer = pod.post("/ask", {"question": "x", "database": "gone"})
    assert answer.status_code == 503
    assert "database 'gone' is not available; its administrator finds the reason in the pod's log" in answer.text
    assert "127.0.0.1" not in answer.text
    assert "database gone is not available yet: " in pod.log() and TOKEN not in pod.log()


def served_test(folder: Path, gold: str, columns: tuple[str, ...] = ("id", "name", "price")) -> Path:
    """Write an acceptance test about the database `postgresql` of the pod; returns its folder."""
    folder.mkdir()
    schema = PublishedSchema(dialect="postgres", tables={"hotel": columns})
    asked = Question(
        id="q", db_id="postgresql", question="x", sql=gold, system="", instruction=instruction("postgresql"), input="x"
    )
    test = AcceptanceTest(threshold=1, max_tokens=32, databases={}, schemas={"postgresql": schema}, questions=(asked,))
    (folder / "acceptance_test-0123456789ab.json").write_text(test.model_dump_json(), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("served", "gold", "columns", "logged"),
    [
        (True, "SELECT name, price FROM hotel ORDER BY id", (), "passed its acceptance test: 1 of 1 right, 1 needed\n"),
        (True, "SELECT name, price FROM hotel ORDER BY id DESC", (), "failed its acceptance test: 0 of 1 right"),
        (False, "SELECT 1", ("id", "name", "price"), "1 of 1 right, 1 needed (no database, so only the text"),
        (False, "SELECT 1", ("id", "name"), "failed its acceptance test: 0 of 1 right, 1 needed (no database"),
        (None, "SELECT 1", ("id", "name", "price"), "acceptance test: database postgresql is not available: "),
    ],
)
def test_the_acceptance_test_runs_on_the_pod_s_database_or_checks_the_text(
    tmp_path: Path, addresses: dict[str, str], served: bool | None, gold: str, columns: tuple[str, ...], logged: str
) -> None:
    if "postgresql" not in addresses:
        pytest.skip("PostgreSQL is not installed")
    test = served_test(tmp_path / "test", gold, columns)
    model = published(tmp_path, "1", SQL, None, context_length=2048, cutoff_length=2048, test=test)
    address = addresses["postgresql"].format(db_id="hotels")
    gone = f"postgresql+psycopg://reader@127.0.0.1:{free_port()}/gone"
    databases = {} if served is False else {"postgresql": address if served else gone}
    pod = RunningPod(tmp_path / "pod", [{"name": "hotel", "uri": model}], {"databases": databases})
    if "failed" in logged:
        assert pod.fetch().returncode == 0
        with pod.ollama(), pod.proxy() as proxy:
            assert proxy.wait(120) == 4
    else:
        with pod.ready():
            pass
    assert logged in pod.log()
