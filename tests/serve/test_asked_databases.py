"""The values of a pod's databases are read again when a database has changed, and shared by its models."""

import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.serve.pod.asked_databases import AskedDatabase, FileDatabase, ServerDatabase, open_all
from chatmetrics.components.serve.release import Release


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "hotel.sqlite"
    write(path, "CREATE TABLE city (name TEXT, mayor TEXT)", "INSERT INTO city VALUES ('Shanghai', 'Gong')")
    return path


def opened(where: str) -> AskedDatabase:
    release = {"models": [{"name": "m", "uri": "file:///models/m/1/manifest.json"}], "databases": {"hotel": where}}
    return open_all(Release.model_validate(release))["hotel"]


def write(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    time.sleep(0.03)  # a file that has just been written may be written again


def test_a_file_that_changes_is_indexed_again(path: Path) -> None:
    database = opened(str(path))
    assert isinstance(database, FileDatabase)
    schema = database.schema(2)
    values = database.values(schema)
    assert [value.value for value in values.find("Shangai or Bonn")] == ["Shanghai"]
    assert database.values(database.schema(2)) is values
    write(path, "INSERT INTO city VALUES ('Bonn', 'Dörner')")
    assert [value.value for value in database.values(schema).find("Shangai or Bonn")] == ["Shanghai", "Bonn"]


def test_models_with_other_private_columns_have_other_values(path: Path) -> None:
    database = opened(str(path))
    private = database.schema(0, Descriptions(private={"city": ("mayor",)}))
    assert database.values(private).find("Where is Gong mayor?") == []
    assert len(database.values(database.schema()).find("Where is Gong mayor?")) == 1


def test_the_values_of_a_server_are_kept(addresses: dict[str, str]) -> None:
    address = addresses["duckdb"].format(db_id="hotels")
    database = opened(address)
    assert isinstance(database, ServerDatabase)
    schema = database.schema()
    values = database.values(schema)
    assert [value.value for value in values.find("the Addler and 和平饭店")] == ["Adler", "和平饭店"]
    assert database.values(database.schema()) is values
    assert database.values(replace(schema, foreign_keys=())) is not values
