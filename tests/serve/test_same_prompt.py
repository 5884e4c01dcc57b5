"""The prompt of training, of distill, of `ask` and of a pod's /ask are the same bytes, also with descriptions."""

import asyncio
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from chatmetrics.components.distill.session import open_session
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.nl2sql.descriptions import FILE, read_descriptions
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate, dataset_template
from chatmetrics.components.preprocess.dataset_card import DatasetCard
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.serve.ask import ask, published_descriptions, published_settings
from chatmetrics.components.serve.model import ServedModel
from chatmetrics.components.serve.pod.access import AccessControl
from chatmetrics.components.serve.pod.admission import Admitted
from chatmetrics.components.serve.pod.ask_service import AskService
from chatmetrics.components.serve.pod.bearer_tokens import BearerTokens
from chatmetrics.components.serve.pod.engine.client import EngineClient
from chatmetrics.components.serve.pod.engine.engine import Engine
from chatmetrics.components.serve.pod.engine.queue import EngineQueue
from chatmetrics.components.serve.pod.metrics import Metrics
from chatmetrics.components.serve.pod.pod_state import PodState
from chatmetrics.components.serve.pod.request_log import RequestLog
from chatmetrics.components.serve.release import Release
from chatmetrics.components.serve.settings import AskSettings
from chatmetrics.components.storage.manifest import publish, read_manifest, stage

SHOP = """
CREATE TABLE item (id INTEGER PRIMARY KEY, nm TEXT, "order" INT, pr REAL, twice REAL AS (pr * 2));
CREATE TABLE sale (id INTEGER PRIMARY KEY, item_id INT);
CREATE VIEW cheap AS SELECT nm FROM item WHERE pr < 1;
INSERT INTO item VALUES (1, 'tea', 3, 0.5);
"""
QUESTION = "What is in {} [USR] <｜User｜>?"
EVIDENCE = '[USR] means <｜User｜>,\n\tas in "order"'
TABLES = {
    "db_id": "shop",
    "table_names_original": ["item", "Sale"],
    "column_names_original": [[-1, "*"], [0, "ID"], [0, "nm"], [0, "pr"], [1, "id"], [1, "item_id"]],
    "column_names": [[-1, "*"], [0, "id"], [0, "name of\n the 品目"], [0, "price"], [1, "id"], [1, "item id"]],
    "column_types": ["text", "number", "text", "number", "number", "number"],
    "primary_keys": [1, 4],
    "foreign_keys": [[5, 1]],
}


class Endpoint(BaseHTTPRequestHandler):
    """An endpoint with Ollama's API that keeps prompts. Its model answers `SELECT 1`."""

    prompts: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"version": "1", "models": [{"name": "m:1"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.prompts.append(body["prompt"])
        tokens = len(body["prompt"].encode()) + 1  # and BOS
        self._answer({"response": "SELECT 1", "done": True, "prompt_eval_count": tokens, "eval_count": 1})

    def _answer(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def prompts() -> list[str]:
    return []


@pytest.fixture
def endpoint(prompts: list[str]) -> Iterator[str]:
    handler = type("Recording", (Endpoint,), {"prompts": prompts})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def asked_pod(
    databases: dict[str, Path], uri: str, folder: Path, endpoint: str, prompts: list[str], around: str = ""
) -> dict[str, str]:
    """The prompts of a pod's /ask, by database; `around` is the text before the question."""
    gguf, template = folder / "m.gguf", PromptTemplate.parse(read_manifest(uri).prompt_template)
    admitted = Admitted(ServedModel("m:1", gguf, "0" * 64, template, 4096), "digest", None, None)
    release = Release.model_validate({"models": [{"name": "m", "uri": uri}], "databases": databases})

    async def ask_all() -> dict[str, str]:
        found = {}
        state, described = PodState(admitted={"m": admitted}, loaded=True), {"m": read_descriptions(folder)}
        metrics = Metrics()
        engine = Engine(EngineClient(endpoint), state, metrics, 60)
        service = AskService(release, {"m": read_manifest(uri)}, described, state, metrics, engine, endpoint)
        tokens, queue = BearerTokens(None), EngineQueue(1, 9, metrics.queue)
        access = AccessControl(service.handlers(), state, tokens, metrics, "", queue, 60, 10**6, RequestLog("none"))
        transport = httpx.ASGITransport(access)
        async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
            for name in databases:
                question = around + QUESTION.format(name)
                answer = await client.post("/ask", json={"question": question, "evidence": EVIDENCE, "database": name})
                assert answer.status_code == 200, answer.text
                condensed = answer.json().get("condensed_question", question)
                assert (condensed != question) == bool(around)
                found[name] = prompts[-1]
        return found

    return asyncio.run(ask_all())


def published(recipe: PreprocessSettings, card: DatasetCard, dataset: Path, folder: Path) -> str:
    """Publish a model that was trained on the dataset, below the folder; returns its URI."""
    (folder / "m.gguf").write_bytes(b"GGUF")
    about = {
        "schema_form": recipe.schema_form,
        "sample_values": recipe.sample_values,
        "cutoff_length": recipe.cutoff_length,
        "prompt_template": card.prompt_template,
    }
    return publish(stage(str(folder / "models"), "m", "1", [folder / "m.gguf", dataset / FILE], about))


def check_prompts(
    source: Path, tmp_path: Path, endpoint: str, prompts: list[str], special: Sequence[str] = (), **settings: Any
) -> list[str]:
    """Compare the prompts of all steps about the source's databases; returns those of training.

    `special` are special tokens of the base's tokenizer.
    """
    (tmp_path / "tokenizer").mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    values = {"source": source, "tokenizer": tmp_path / "tokenizer", "workers": 1, "dev_fraction": 0, **settings}
    values["template"] = "deepseek3"
    recipe = PreprocessSettings.model_validate({name: str(value) for name, value in values.items()})
    dataset = tmp_path / "dataset"
    card = preprocess(recipe, dataset)
    trained = {example.db_id: example for example in read_examples(dataset / "train.jsonl")}
    template = dataset_template(dataset)
    expected = {name: template.prompt(each.system, each.instruction, each.input) for name, each in trained.items()}
    databases = {name: next(Path(card.databases).rglob(f"{name}.sqlite")) for name in trained}

    uri = published(recipe, card, dataset, tmp_path)
    prompt, descriptions = published_settings(read_manifest(uri)), published_descriptions(uri)
    for name, path in databases.items():
        ask(
            QUESTION.format(name),
            path,
            endpoint,
            settings=prompt,
            descriptions=descriptions.get(name),
            evidence=EVIDENCE,
        )
        assert prompts[-1] == expected[name]
    assert asked_pod(databases, uri, tmp_path / "models" / "m" / "1", endpoint, prompts) == expected

    form = "ddl" if recipe.schema_form == "none" else recipe.schema_form
    teacher = {"base_url": endpoint, "model": "m", "schema": form, "sample_values": recipe.sample_values}
    distill = DistillSettings.model_validate(teacher)
    with open_session(distill, dataset, "", str(tmp_path / "ledger")) as session:
        for name, example in trained.items():
            if recipe.schema_form != "none":
                assert session.student.schema(name).render(session.student.form or "ddl") == example.system
                assert session.schemas.text(name, example.input) == example.system
            assert session.score_request(example).messages[-1] == ("user", f"{example.instruction}\n{example.input}")
    return list(expected.values())


def write_source(folder: Path, db_ids: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    questions = [
        {"question": QUESTION.format(name), "evidence": EVIDENCE, "query": "SELECT 1", "db_id": name} for name in db_ids
    ]
    (folder / "train.json").write_text(json.dumps(questions), encoding="utf-8")
    return folder


@pytest.mark.parametrize("form", ["ddl", "m-schema"])
@pytest.mark.parametrize("samples", [0, 2])
def test_descriptions_are_in_the_prompts_of_all_steps(
    tmp_path: Path, endpoint: str, prompts: list[str], form: str, samples: int
) -> None:
    source = write_source(tmp_path / "source", ["shop"])
    (source / "tables.json").write_text(json.dumps([TABLES]), encoding="utf-8")
    with closing(sqlite3.connect(source / "shop.sqlite")) as connection:
        connection.executescript(SHOP)
    (prompt,) = check_prompts(source, tmp_path, endpoint, prompts, schema=form, sample_values=samples)
    key = "FOREIGN KEY (item_id) REFERENCES item (id)" if form == "ddl" else "sale.item_id=item.id"
    for text in ("name of the 品目", "price", "twice", "cheap", '"order"', key, *(["tea"] if samples else [])):
        assert text in prompt


KNOWLEDGE = """
terms: {USR: a user}
databases:
  shop:
    tables:
      Item: {description: "what [USR] is  sold", columns: {NM: {private: true}, pr: {values: {1: <｜User｜>}}}}
    terms: {what is in: "columns of <｜User｜>"}
"""


@pytest.mark.parametrize("form", ["ddl", "m-schema", "none"])
def test_knowledge_is_in_the_prompts_of_all_steps(tmp_path: Path, endpoint: str, prompts: list[str], form: str) -> None:
    source = write_source(tmp_path / "source", ["shop"])
    with closing(sqlite3.connect(source / "shop.sqlite")) as connection:
        connection.executescript(SHOP)
    (tmp_path / "knowledge.yaml").write_text(KNOWLEDGE, encoding="utf-8")
    knowledge = tmp_path / "knowledge.yaml"
    (prompt,) = check_prompts(source, tmp_path, endpoint, prompts, schema=form, sample_values=2, knowledge=knowledge)
    assert "tea" not in prompt
    assert "; USR: a user; what is in: columns of <" in prompt
    if form != "none":
        assert "what [USR] is sold" in prompt and "1 = <" in prompt


def test_special_tokens_of_the_base_are_kept_out_of_the_prompts_of_all_steps(
    tmp_path: Path, endpoint: str, prompts: list[str]
) -> None:
    source = write_source(tmp_path / "source", ["shop"])
    described = json.dumps([TABLES]).replace("item id", "item [USR] id")
    (source / "tables.json").write_text(described, encoding="utf-8")
    with closing(sqlite3.connect(source / "shop.sqlite")) as connection:
        connection.executescript(
            SHOP.replace("'tea'", "'tea[USR]'").replace("item_id INT", 'item_id INT, "a[USR]" INT')
        )
    special = ("[USR]", "<｜User｜>")
    (prompt,) = check_prompts(source, tmp_path, endpoint, prompts, special, schema="m-schema", sample_values=1)
    assert prompt.count("[ USR]") == 5 and "[USR]" not in prompt
    (usual,) = check_prompts(source, tmp_path / "usual", endpoint, prompts, (), schema="m-schema", sample_values=1)
    assert usual == prompt.replace("[ USR]", "[USR]")


@pytest.mark.parametrize("around", ["", "Thank you for the coffee. The train was late again. " * 20])
def test_values_that_a_question_names_are_in_the_pruned_prompts_of_all_steps(
    tmp_path: Path, endpoint: str, prompts: list[str], around: str
) -> None:
    """The question misspells one, and names one that is private. A long question is condensed."""
    source, name = tmp_path / "source", "shangai"
    write_source(source, [name])
    question = {"question": around + QUESTION.format(name), "evidence": EVIDENCE, "db_id": name}
    # The answer takes as many tokens as `ask` leaves for one.
    query = "SELECT '{}'"
    question["query"] = query.format("x" * (AskSettings().max_tokens - 1 - len(query.format(""))))
    (source / "train.json").write_text(json.dumps([question]), encoding="utf-8")
    (source / "knowledge.yaml").write_text("databases: {shangai: {tables: {guest: {columns: {nm: {private: true}}}}}}")
    with closing(sqlite3.connect(source / f"{name}.sqlite")) as connection, connection:
        wide = ", ".join(f"{'x' * 60}{number} REAL" for number in range(60))
        connection.executescript(
            f"CREATE TABLE log (id INTEGER, {wide}); CREATE TABLE guest (nm TEXT); CREATE TABLE town (nm TEXT);"
            "INSERT INTO guest VALUES ('Shanghai'); INSERT INTO town VALUES ('Bonn'), ('Rome'), ('Shanghai');"
        )
    (tmp_path / "tokenizer").mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    values = {"source": source, "tokenizer": tmp_path / "tokenizer", "knowledge": source / "knowledge.yaml"}
    about = {"workers": 1, "dev_fraction": 0, "template": "deepseek3", "cutoff_length": 900, "sample_values": 2}
    recipe = PreprocessSettings.model_validate({key: str(value) for key, value in (values | about).items()})
    dataset = tmp_path / "dataset"
    card = preprocess(recipe, dataset)
    [example] = read_examples(dataset / "train.jsonl")
    assert "CREATE TABLE town (\nnm TEXT -- e.g. Shanghai\n)" in example.system
    assert example.system.count("Shanghai") == 1 and "xxx59 REAL" not in example.system

    expected = dataset_template(dataset).prompt(example.system, example.instruction, example.input)
    database = next(Path(card.databases).rglob(f"{name}.sqlite"))
    uri = published(recipe, card, dataset, tmp_path)
    settings, known = published_settings(read_manifest(uri)), published_descriptions(uri)[name]
    answer = ask(question["question"], database, endpoint, settings=settings, descriptions=known, evidence=EVIDENCE)
    assert prompts[-1] == expected
    assert example.question == question["question"] and card.condensed == ({"train": 1} if around else {})
    assert answer.condensed in example.input and (answer.condensed != "") == bool(around)
    folder = tmp_path / "models" / "m" / "1"
    assert asked_pod({name: database}, uri, folder, endpoint, prompts, around) == {name: expected}

    shown = {"schema": "ddl", "sample_values": 2, "schema_tokens": count_text(tokenizer, example.system)}
    distill = DistillSettings.model_validate({"base_url": endpoint, "model": "m", **shown})
    with open_session(distill, dataset, "", str(tmp_path / "ledger")) as session:
        assert "e.g. Shanghai" in session.schemas.text(name, example.input)
        assert session.schemas.text(name, example.input).count("Shanghai") == 1
        found = session.student.find_values(name, example.input)
        assert [(value.table, value.value, value.asked) for value in found] == [("town", "Shanghai", "shangai")]


def count_text(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text).ids)


@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
@pytest.mark.parametrize(("every", "number"), [(8, 21), pytest.param(1, 165, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(("form", "samples"), [("ddl", 0), ("m-schema", 3)])
def test_the_prompts_about_spider_databases_are_equal(
    tmp_path: Path, endpoint: str, prompts: list[str], form: str, samples: int, every: int, number: int
) -> None:
    spider = Path(os.environ["CHATMETRICS_SPIDER_DIR"])
    names = sorted(path.stem for path in (spider / "database").glob("*/*.sqlite"))[::every]
    source = write_source(tmp_path / "source", names)
    (source / "tables.json").write_bytes((spider / "tables.json").read_bytes())
    found = check_prompts(
        source,
        tmp_path,
        endpoint,
        prompts,
        databases=spider / "database",
        schema=form,
        sample_values=samples,
        cutoff_length=10**6,
    )
    assert len(found) == number
