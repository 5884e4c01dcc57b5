"""A shop's database, and questions, answers and samples about it."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from chatmetrics.components.distill.answers.samples import Sample
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher.request import TeacherAnswer
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.fitting import bare_example
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, PromptTemplate
from chatmetrics.components.nl2sql.prompts.token_counter import TokenCounter
from chatmetrics.components.nl2sql.sql.query_type import query_type_of

TABLES = """
    CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT);
    CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city_id INT REFERENCES city);
    CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL);
    CREATE TABLE sale (
        id INTEGER PRIMARY KEY, item_id INT REFERENCES item, customer_id INT REFERENCES customer, day DATE
    );
    CREATE TABLE returned (sale_id INT REFERENCES sale, reason TEXT);
"""
ROWS = """
    INSERT INTO city VALUES (1, 'Paris'), (2, '上海');
    INSERT INTO customer VALUES (1, 'Ann', 1), (2, 'Bo', 2), (3, 'Cy', 2);
    INSERT INTO item VALUES (1, 'tea', 2.5), (2, '茶', 3), (3, 'cup', 3);
    INSERT INTO sale VALUES (1, 1, 1, '2024-05-01'), (2, 2, 2, '2024-05-02'), (3, 2, 1, '2024-05-02');
"""


def make_shop(folder: Path, name: str = "shop", rows: str = ROWS) -> Path:
    """Create FOLDER/NAME/NAME.sqlite; its table `returned` is empty."""
    path = folder / name / f"{name}.sqlite"
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(TABLES + rows)
    return path


def settings(**values: Any) -> DistillSettings:
    return DistillSettings.model_validate({"base_url": "scripted", **values})


def question(gold: str = "", id: str = "q", db_id: str = "shop", words: str = "How many?") -> Example:
    return bare_example(id, db_id, words, gold, "train", query_type_of(gold) if gold else "")


def answer(text: str, reasoning: str = "", is_cut: bool = False) -> TeacherAnswer:
    return TeacherAnswer(text, reasoning, 100, 20, is_cut, seconds=1.0, first_token=0.5)


def samples(asked: Example, *answers: str | TeacherAnswer) -> list[Sample]:
    read = (given if isinstance(given, TeacherAnswer) else answer(f"```sql\n{given}\n```") for given in answers)
    return [Sample.of(asked, number, given) for number, given in enumerate(read)]


def byte_counter(template: PromptTemplate = DEEPSEEK3) -> TokenCounter:
    """A counter with one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TokenCounter(tokenizer, template)
