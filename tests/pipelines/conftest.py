"""A recipe small enough for a whole run: a random base model of 150 KB and a table with thirty rows."""

import inspect
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from kfp.dsl import pipeline_task

from tests.models import tiny_base

RECIPE = """
name: tiny
base_model: ./base
preprocess: {source: questions, format: jsonl, schema: none, cutoff_length: 256, workers: 1}
train:
  {precision: fp32, cutoff_length: 256, max_steps: 150, batch_size: 4, gradient_accumulation: 1, checkpoint_steps: 5}
convert: {quantization: Q8_0, context_length: 256}
evaluate: {context_length: 256, max_tokens: 16}
"""


@pytest.fixture(scope="session", autouse=True)
def cheap_stacks() -> Iterator[None]:
    """Let KFP find its caller's name without the source of each frame, of which pytest has many.

    It looks for it at each option of a task. That is nine tenths of the time in which a pipeline compiles in a test.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_task, "inspect", SimpleNamespace(stack=lambda: inspect.stack(context=0)))
        yield


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the recipe file, with its base model, questions and database in the same folder."""
    home = tmp_path_factory.mktemp("tiny")
    tiny_base(home / "base")
    databases = home / "questions" / "databases"
    databases.mkdir(parents=True)
    with closing(sqlite3.connect(databases / "shop.sqlite")) as connection:
        connection.execute("CREATE TABLE item (name TEXT, price REAL)")
        connection.executemany("INSERT INTO item VALUES (?, ?)", [(f"n{n}", n / 2) for n in range(30)])
        connection.commit()
    for split, numbers in (("train", range(24)), ("dev", range(24, 30))):
        lines = (
            {"question": f"What does n{n} cost?", "sql": f"SELECT price FROM item WHERE name = 'n{n}'", "db_id": "shop"}
            for n in numbers
        )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (home / "questions" / f"{split}.jsonl").write_text(text)
    (home / "tiny.yaml").write_text(RECIPE)
    return home / "tiny.yaml"
