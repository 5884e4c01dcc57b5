"""What stands for databases on servers in cache keys."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from chatmetrics.components.preprocess import freshness as module
from chatmetrics.components.preprocess.freshness import freshness
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.storage.mirror import push_folder
from tests.ports import free_port


class Tomorrow(module.datetime):
    @classmethod
    def now(cls, *_: Any) -> Any:
        return cls(2199, 1, 1)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Questions, next to DuckDB files."""
    record = {"question": "How many?", "sql": "SELECT count(*) FROM item", "db_id": "shop"}
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "train.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    change(tmp_path, "CREATE TABLE item (id int PRIMARY KEY, name text)", "INSERT INTO item VALUES (1, 'tea')")
    return tmp_path


def change(folder: Path, *statements: str) -> None:
    with duckdb.connect(str(folder / "shop.duckdb")) as connection:
        for statement in statements:
            connection.execute(statement)


def settings(shop: Path, databases: Any = None, **more: Any) -> PreprocessSettings:
    address = databases or f"duckdb:///{shop}/{{db_id}}.duckdb"
    values = {"source": str(shop / "questions"), "format": "jsonl", "databases": address, **more}
    return PreprocessSettings.model_validate(values)


def test_files_need_nothing(tmp_path: Path) -> None:
    assert freshness(PreprocessSettings(source=str(tmp_path), databases=str(tmp_path))) == []
    assert freshness(PreprocessSettings(source="s3://bucket/spider", databases="s3://bucket/databases")) == []


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_changed_schema_and_another_day_are_noticed(
    shop: Path, is_listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [{"name": "shop", "address": f"duckdb:///{shop}/shop.duckdb"}]
    given = settings(shop, listed if is_listed else None, **({"source": "s3://gone/questions"} if is_listed else {}))
    first = freshness(given)
    change(shop, "INSERT INTO item VALUES (2, 'salt')")
    assert freshness(given) == first
    for statement in ("ALTER TABLE item ADD COLUMN price int", "COMMENT ON COLUMN item.price IS 'in cents'"):
        before = freshness(given)
        change(shop, statement)
        assert freshness(given) != before
    before = freshness(given)
    monkeypatch.setattr(module, "datetime", Tomorrow)
    assert freshness(given) != before


def test_questions_in_a_bucket_are_read(shop: Path, bucket: str) -> None:
    given = settings(shop, source=push_folder(shop / "questions", f"s3://{bucket}/inputs"))
    before = freshness(given)
    change(shop, "CREATE VIEW cheap AS SELECT * FROM item")
    assert freshness(given) != before


def test_a_server_that_cannot_be_read_here_is_a_warning(shop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = settings(shop, f"postgresql+psycopg://reader@127.0.0.1:{free_port()}/{{db_id}}")
    assert len(freshness(given)) == 2 and freshness(given) == freshness(given)
    assert "warning: a change of the databases' schemas is noticed tomorrow, not today: " in capfd.readouterr().err
