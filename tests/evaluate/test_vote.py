"""The vote over several answers, by result."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.evaluate import evaluate, evaluate_predictions
from chatmetrics.components.evaluate.report import Report
from chatmetrics.components.evaluate.settings import EvaluateSettings
from tests.gguf_files import answering_gguf

GOLD = "SELECT name FROM hotel WHERE rating > 4.2"
RIGHT, OTHER = "SELECT name FROM hotel WHERE NOT rating <= 4.2", "SELECT name FROM hotel"
EMPTY, ZERO, FAILS = "SELECT name FROM hotel WHERE rating > 9", "SELECT 0, NULL", "SELECT zzz FROM hotel"
BINDS = "SELECT names FROM hotel WHERE rating > 4.2"

# The greedy answer, the sampled ones, and the elected one.
ELECTIONS = {
    "most answers": (OTHER, [RIGHT, GOLD, OTHER, GOLD], RIGHT),
    "the greedy answer wins a tie": (OTHER, [RIGHT, RIGHT, OTHER], OTHER),
    "a failing answer has no vote": (FAILS, [FAILS, FAILS, RIGHT], RIGHT),
    "an empty result has no vote": (EMPTY, [EMPTY, EMPTY, RIGHT], RIGHT),
    "zeros have no vote": (ZERO, [ZERO, ZERO, RIGHT], RIGHT),
    "without a vote the first that runs": (FAILS, [EMPTY, ZERO, FAILS], EMPTY),
    "without any that runs the greedy one": (FAILS, ["SELECT", FAILS], FAILS),
    "names are bound": (FAILS, [BINDS, BINDS, OTHER], "SELECT name FROM hotel WHERE rating > 4.2"),
    "other columns are another result": (OTHER, ["SELECT name, 1 FROM hotel", RIGHT, RIGHT], RIGHT),
    "the order of rows does not matter": (
        RIGHT,
        [f"{OTHER} ORDER BY 1", f"{OTHER} ORDER BY 1 DESC"],
        f"{OTHER} ORDER BY 1",
    ),
}


def scored(
    elections: dict[str, tuple[str, list[str], str]], databases: Path, folder: Path, **settings: object
) -> tuple[Report, list[dict[str, Any]]]:
    records = [
        {"db_id": "hotel", "gold": GOLD, "question": name, "predicted": greedy, "sampled_answers": sampled}
        for name, (greedy, sampled, _) in elections.items()
    ]
    (folder / "answers.json").write_text(json.dumps(records), "utf-8")
    chosen = EvaluateSettings.model_validate(settings)
    report = evaluate_predictions(chosen, {"it": folder / "answers.json"}, str(databases), folder / "report")
    lines = (folder / "report" / "items.jsonl").read_text("utf-8").splitlines()
    return report, [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", ELECTIONS)
def test_the_result_that_most_answers_return_is_elected(name: str, databases: Path, tmp_path: Path) -> None:
    _, [item] = scored({name: ELECTIONS[name]}, databases, tmp_path)
    assert item["voted"] == ELECTIONS[name][2]
    assert item["voted_strict"] == (item["voted"] in (RIGHT, GOLD))


def test_the_report_has_the_vote_and_the_recall_at_k(databases: Path, tmp_path: Path) -> None:
    elections = {
        "first": (RIGHT, [RIGHT, RIGHT], RIGHT),
        "third": (OTHER, [OTHER, RIGHT], OTHER),
        "second, bound": (FAILS, [BINDS, FAILS], GOLD),
        "none": (OTHER, [OTHER, EMPTY], OTHER),
    }
    report, items = scored(elections, databases, tmp_path)
    score = report.systems["it"]
    assert score.strict.correct == 1 and score.vote is not None
    assert (score.vote.strict.correct, score.vote.official.correct, score.vote.sampled_answers) == (2, 2, 2)
    assert score.vote.recall == [0.25, 0.5, 0.75]
    assert (score.vote.comparison.only_first, score.vote.comparison.only_second) == (0, 1)
    assert [item["strict"] for item in items] == [True, False, False, False]
    assert "(as answered; strict 50.0% by vote)" in report.headline
    for page in ("report.html", "report.md"):
        text = (tmp_path / "report" / page).read_text("utf-8").lower()
        assert [found for found in ("vote of sampled answers", "75.0 %", "50.0 %") if found not in text] == []


def test_the_elected_answer_counts_if_the_setting_says_so(databases: Path, tmp_path: Path) -> None:
    elections = {"vote": (FAILS, [RIGHT, RIGHT], RIGHT)}
    settings = {"answer": "vote", "sampled_answers": 2, "gate": 1.0}
    report, [item] = scored(elections, databases, tmp_path, **settings)
    assert (report.systems["it"].strict.correct, report.passed, item["strict"]) == (1, True, False)
    assert "(by vote; strict 0.0% as answered, 0.0% with names bound)" in report.headline


def test_a_vote_without_sampled_answers_is_an_error() -> None:
    with pytest.raises(ValidationError, match="sampled_answers is 0: set it"):
        EvaluateSettings(answer="vote")


@pytest.mark.parametrize("sampled", ["SELECT 1", [1], {"a": "b"}])
def test_sampled_answers_of_another_form_are_an_error(sampled: object, databases: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"answers\.json\[0\]: the field 'sampled_answers' is not a list of strings"):
        scored({"x": (GOLD, sampled, GOLD)}, databases, tmp_path)  # type: ignore[dict-item]


def test_a_student_is_asked_for_sampled_answers_with_the_least_probability(dataset: Path, tmp_path: Path) -> None:
    """The second most likely token has about half the probability of the first, so min_p 0.9 excludes it."""
    student = answering_gguf(tmp_path, ["SELECT", " name", " FROM", " hotel"], or_else=" hotel LIMIT 1")

    def sampled(folder: str, min_p: float) -> set[str]:
        settings = EvaluateSettings(
            max_tokens=16,
            concurrency=2,
            context_length=512,
            acceptance_test_questions=0,
            limit=2,
            sampled_answers=8,
            answer="vote",
            sampling_min_p=min_p,
        )
        report = evaluate(settings, dataset, "", student, None, tmp_path / folder, None)
        assert report.systems["student"].vote is not None
        lines = (tmp_path / folder / "items.jsonl").read_text("utf-8").splitlines()
        return {sql for line in lines for sql in json.loads(line)["sampled_answers"]}

    assert len(sampled("free", 0.0)) == 2
    assert sampled("likely", 0.9) == {"SELECT name FROM hotel"}
