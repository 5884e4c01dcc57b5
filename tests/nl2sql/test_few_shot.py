"""Training questions in prompts: which are chosen, and where they are shown."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.few_shot import Choice, Choose, shots_from, with_shots
from chatmetrics.components.nl2sql.prompts.fitting import bare_example
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.components.nl2sql.sql.similarity import question_similarity, words_of

SCHEMA = "CREATE TABLE item (id INT);"


def example(question: str, sql: str = "SELECT 1", db_id: str = "shop") -> Example:
    return bare_example(f"{db_id}:{question}", db_id, question, sql, "train", "aggregate")


TRAINING = [
    example("How many singers are there?", "SELECT count(*) FROM singer;", "concert"),
    example("How many items are there?", "SELECT count(*) FROM item"),
    example("How many items are there?", "SELECT count(id) FROM item"),
    example("Name all cities of Japan.", "SELECT name FROM city", "world"),
    example("有多少商品?", "SELECT sum(1) FROM item"),
]


def test_shots_come_between_schema_and_question() -> None:
    asked = replace(example("有多少?"), system=SCHEMA)
    shown = with_shots(asked, [TRAINING[0], TRAINING[3]])
    assert DEEPSEEK3.prompt(shown.system, shown.instruction, shown.input) == (
        "CREATE TABLE item (id INT);<｜User｜>Using the database 'shop', translate the following natural language "
        "question into a SQL query.\n"
        "Question: How many singers are there?\nSQL: SELECT count(*) FROM singer\n\n"
        "Question: Name all cities of Japan.\nSQL: SELECT name FROM city\n\n"
        "Question: 有多少?\nSQL:<｜Assistant｜>"
    )
    assert (shown.question, shown.sql, shown.output) == (asked.question, asked.sql, asked.output)
    assert with_shots(asked, []) == asked


def test_random_shots_are_the_same_for_all_questions_but_never_the_question_itself() -> None:
    choose = shots_from(TRAINING, 3, "random", seed=1)
    chosen = choose(example("Which items are sold?"))
    assert len({shot.question for shot in chosen}) == 3
    assert choose(example("Something else?")) == chosen
    assert shots_from(TRAINING, 3, "random", seed=1)(example("Something else?")) == chosen
    for shot in chosen:
        others = choose(shot)
        assert len(others) == 3
        assert shot.question not in [other.question for other in others]
    assert any(shots_from(TRAINING, 3, "random", seed)(example("?")) != chosen for seed in range(5))


def test_similar_shots_have_the_most_words_in_common_and_the_most_similar_comes_last() -> None:
    choose = shots_from(TRAINING, 2, "similar", seed=1)
    assert [shot.question for shot in choose(example("How many items are sold there?"))] == [
        "How many singers are there?",
        "How many items are there?",
    ]
    assert choose(example("商品有多少?"))[-1].question == "有多少商品?"
    # Of two answers to a question, the first one is shown; the same words about another database are another question.
    assert choose(example("How many items are there?", db_id="other"))[-1].sql == "SELECT count(*) FROM item"
    assert "How many items are there?" not in [shot.question for shot in choose(TRAINING[1])]


@pytest.mark.parametrize("choice", ["random", "similar"])
def test_too_few_training_questions_are_an_error(choice: Choice) -> None:
    with pytest.raises(InputError, match="few_shot is 4, but the dataset has only 4 training questions"):
        shots_from(TRAINING, 4, choice, seed=0)
    assert list(shots_from(TRAINING, 0, choice, seed=0)(TRAINING[0])) == []


def test_similar_questions_of_spider() -> None:
    if "CHATMETRICS_SPIDER_DIR" not in os.environ:
        pytest.skip("CHATMETRICS_SPIDER_DIR is not set")
    spider = Path(os.environ["CHATMETRICS_SPIDER_DIR"])
    train, dev = (
        [example(item["question"], item["query"], item["db_id"]) for item in json.loads((spider / name).read_bytes())]
        for name in ("train_spider.json", "dev.json")
    )
    similar, random = (shots_from(train, 3, choice, seed=0) for choice in ("similar", "random"))
    asked = dev[::30]

    def mean(choose: Choose) -> float:
        pairs = [(words_of(one.question), words_of(shot.question)) for one in asked for shot in choose(one)]
        return sum(question_similarity(*pair) for pair in pairs) / len(pairs)

    assert len(asked) > 30
    assert mean(similar) > 0.4 > 0.2 > mean(random)
    assert {shot.db_id for one in asked for shot in similar(one)}.isdisjoint(one.db_id for one in dev)
