"""The generated demo data: reproducible, answerable, and with nothing held out in training."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.sql.query_type import QUERY_TYPES, query_type_of
from chatmetrics.components.preprocess.hotel import generate
from chatmetrics.components.preprocess.hotel_forms import FORMS

FIRST_QUESTION = "2024年上海浦东新区评分前10的酒店订单量"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hotel")
    generate(folder, seed=0)
    return folder


def records(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_data_depend_on_the_seed_only(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    generate(tmp_path / "same", seed=0)
    generate(tmp_path / "other", seed=1)
    for name in ("train.jsonl", "dev.jsonl", "databases/hotel/hotel.sqlite"):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_every_query_type_is_in_train_and_dev(folder: Path) -> None:
    for name in ("train", "dev"):
        assert {query_type_of(record["sql"]) for record in records(folder, name)} == set(QUERY_TYPES)


def test_every_gold_query_returns_rows(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "databases" / "hotel" / "hotel.sqlite")) as connection:
        for record in [*records(folder, "train"), *records(folder, "dev")]:
            assert connection.execute(record["sql"]).fetchall(), record


def test_no_question_is_in_train_and_dev(folder: Path) -> None:
    train = {record["question"] for record in records(folder, "train")}
    assert not train & {record["question"] for record in records(folder, "dev")}
    assert FIRST_QUESTION not in train


def test_a_held_out_value_never_occurs_in_training(folder: Path) -> None:
    train = "".join(record["question"] for record in records(folder, "train"))
    assert "浦东新区" not in train
    with closing(sqlite3.connect(folder / "databases" / "hotel" / "hotel.sqlite")) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM hotels")]
    unseen = {name for name in names if name not in train}
    asked = [record for record in records(folder, "dev") if record["split"] == "unseen value"]
    assert any(name in record["question"] for name in unseen for record in asked)


def test_a_held_out_wording_never_occurs_in_training(folder: Path) -> None:
    # The text between the values distinguishes a wording from the others of its form.
    train = [record["question"] for record in records(folder, "train")]
    for form in FORMS:
        for wordings in (form.chinese, form.english):
            pieces = [piece for piece in wordings[-1].replace("{", "\0").replace("}", "\0").split("\0")[::2] if piece]
            assert not any(
                question.startswith(pieces[0]) and question.endswith(pieces[-1]) and all(p in question for p in pieces)
                for question in train
            ), wordings[-1]
