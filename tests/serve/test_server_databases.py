"""/ask about databases on servers and in DuckDB files, with a real Ollama and real servers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

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
