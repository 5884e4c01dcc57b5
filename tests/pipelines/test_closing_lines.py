"""The question that a local run ends with, where it cannot be asked."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from chatmetrics.components.nl2sql.example import write_examples
from chatmetrics.pipelines.local.closing_lines import answer_question
from chatmetrics.pipelines.recipe import load_recipe
from tests.train.small_dataset import example


@pytest.mark.parametrize(
    ("database", "reason"),
    [("", "the dev questions have 2 databases; set question_database"), ("hotl", "have no database 'hotl'")],
)
def test_a_question_without_its_database_is_not_asked(
    tmp_path: Path, database: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [replace(example(number, "Rome"), db_id=f"hotel_{number}") for number in range(2)]
    write_examples(tmp_path / "dev.jsonl", questions)
    recipe = load_recipe("hotel-demo", [f"question_database={database}"])
    answer_question(recipe, "not needed", tmp_path, Console())
    assert f"{reason}: {recipe.question}" in capsys.readouterr().err
