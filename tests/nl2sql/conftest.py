"""A database with names and keys that are hard to handle, its schema, and the execution of queries on it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.answers.answer_form import Execute
from chatmetrics.components.nl2sql.databases.execution import Executor
from chatmetrics.components.nl2sql.schema import Schema
from tests.nl2sql.world import make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def schema(world: Path) -> Schema:
    return Schema.from_sqlite(world)


@pytest.fixture(scope="module")
def execute(world: Path) -> Iterator[Execute]:
    with Executor() as executor:
        yield partial(executor.execute_all, world)
