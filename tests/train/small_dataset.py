"""A dataset folder as preprocess writes it, small enough to train on in a test."""

from pathlib import Path

from chatmetrics.components.nl2sql.example import Example, write_examples
from chatmetrics.components.nl2sql.prompts.prompt import instruction

CITIES = ("上海", "Paris", "Rome", "北京", "São Paulo", "Oslo", "Lima", "Xi'an")


def example(number: int, city: str, sql: str = "") -> Example:
    question = f"How many hotels are there in {city}?"
    quoted = city.replace("'", "''")
    sql = sql or f"SELECT COUNT(*) FROM hotel WHERE city = '{quoted}'"
    schema = "CREATE TABLE hotel (name TEXT, city TEXT);\n"
    return Example(
        f"q{number}", "hotel", question, sql, "aggregate", "train", schema, instruction("hotel"), question, sql
    )


def write_dataset(folder: Path, copies: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_examples(folder / "train.jsonl", [example(i, city) for i, city in enumerate(CITIES * copies)])
    return folder
