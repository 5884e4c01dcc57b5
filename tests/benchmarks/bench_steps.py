"""Measures how fast the steps are on this machine. `make bench` prints the results; times are not asserted."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.databases.execution import Executor, database_path
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from tests.gguf_files import tiny_gguf

BASE = Path(__file__).parents[2] / "pipelines" / "demo" / "base_model"


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@pytest.fixture(scope="module")
def hotel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hotel") / "dataset"
    preprocess(PreprocessSettings(format="hotel", schema="none", tokenizer=str(BASE), workers=2), folder)
    return folder


def test_preprocess_spider(tmp_path: Path) -> None:
    source, tokenizer = (os.environ.get(f"CHATMETRICS_{name}_DIR") for name in ("SPIDER", "TOKENIZER"))
    if not source or not tokenizer:
        pytest.skip("CHATMETRICS_SPIDER_DIR or CHATMETRICS_TOKENIZER_DIR is not set")
    output = tmp_path / "dataset"
    settings = PreprocessSettings(format="spider", source=source, tokenizer=tokenizer, schema="ddl")
    elapsed = seconds(lambda: preprocess(settings, output))
    count = sum(len(read_examples(output / f"{split}.jsonl")) for split in ("train", "dev"))
    print(f"\npreprocess: {count} questions of Spider with DDL in {elapsed:.1f} s, {count / elapsed:.0f}/s")


def test_execute_gold_queries(hotel: Path) -> None:
    examples = read_examples(hotel / "dev.jsonl")
    database = database_path(hotel / "databases", "hotel")
    with Executor() as executor:
        elapsed = seconds(lambda: [executor.execute(database, example.sql) for example in examples])
    print(f"\nexecute: {len(examples)} queries in {elapsed:.2f} s, {1000 * elapsed / len(examples):.2f} ms per query")


def test_shared_prefix_is_read_once(tmp_path: Path) -> None:
    schema = "CREATE TABLE hotels (id INTEGER, name TEXT);" * 24
    with LlamaServer(tiny_gguf(tmp_path), context_length=2048) as server:
        client = Client(server.endpoint)
        client.generate("Another prompt", max_tokens=1)

        def ask(question: str) -> float:
            return seconds(lambda: client.generate(f"{schema}<｜User｜>{question}<｜Assistant｜>", max_tokens=1))

        cold, warm = ask("How many hotels?"), ask("Which hotels?")
    print(f"\nfirst token: {1000 * cold:.0f} ms for a new schema, {1000 * warm:.0f} ms for the next question about it")
