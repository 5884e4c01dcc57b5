"""A question that is not scored, or that chose the adapter, is stated wherever an accuracy is, and the gate sees it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.evaluate import evaluate, evaluate_predictions, write_report
from chatmetrics.components.evaluate.predictions import TokenUsage, predicted
from chatmetrics.components.evaluate.questions import load_questions, questions_that_chose
from chatmetrics.components.evaluate.report import Report, summarize
from chatmetrics.components.evaluate.score import Item, score
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases
from chatmetrics.components.nl2sql.example import Example, write_examples
from tests.command import finished_process
from tests.gguf_files import answering_gguf

GOLD = "SELECT count(*) FROM hotel"
FAILS = "SELECT stars FROM hotel"
USAGE = TokenUsage(latency=1, first_token=0.1, prompt_tokens=10, completion_tokens=5, truncated=False)


def write_predictions(path: Path, golds: list[str], db_id: str = "hotel") -> Path:
    records = [
        {"db_id": db_id, "gold": gold, "predicted": GOLD, "question": str(number)} for number, gold in enumerate(golds)
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("golds", "caveat"),
    [
        ([GOLD] * 3 + [FAILS] * 9, "9 of 12 questions not scored: the gold query fails"),
        ([GOLD] * 3 + ["SELEC"], "1 of 4 questions not scored: the gold query fails"),
        ([GOLD] * 3 + ["DROP TABLE hotel", ""], "2 of 5 questions not scored: the gold query fails"),
        ([GOLD] * 3, ""),
    ],
)
def test_gold_queries_that_fail_are_in_the_headline_and_all_reports(
    golds: list[str], caveat: str, databases: Path, tmp_path: Path
) -> None:
    file = write_predictions(tmp_path / "mine.json", golds)
    done = finished_process("evaluate", "--predictions", file, "--databases", databases, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    headline = done.stdout.splitlines()[-1]
    assert "official 100.0% of 3" in headline and headline.endswith(f"; {caveat}" if caveat else "of 3")
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text("utf-8")
        assert caveat in text and ("not scored:" in text) == bool(caveat)
    [coverage] = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["coverages"]
    assert (coverage["total"], sum(coverage["not_scored"].values())) == (len(golds), len(golds) - 3)


def test_if_nothing_is_scored_the_command_fails_and_the_report_tells_why(databases: Path, tmp_path: Path) -> None:
    file = write_predictions(tmp_path / "mine.json", [FAILS] * 3)
    done = finished_process("evaluate", "--predictions", file, "--databases", databases, "--output", tmp_path / "out")
    assert done.returncode == 3
    assert "no question could be scored: 3 of 3 questions not scored: the gold query fails" in done.stderr
    assert "3 of 3 questions not scored" in (tmp_path / "out" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(("failing", "passes"), [(0, True), (2, True), (3, True), (4, False), (9, False)])
def test_a_gate_is_not_passed_if_most_questions_are_not_scored(
    failing: int, passes: bool, databases: Path, tmp_path: Path
) -> None:
    file = write_predictions(tmp_path / "mine.json", [GOLD] * 3 + [FAILS] * failing)
    options = ["--set", "evaluate.gate=0.9", "--databases", databases, "--output", tmp_path / "out"]
    done = finished_process("evaluate", "--predictions", file, *options)
    assert done.returncode == (0 if passes else 4), done.stderr
    assert ("at least 50% must be scored" in done.stderr) is not passes


def test_the_share_that_the_gate_needs_is_a_setting(databases: Path, tmp_path: Path) -> None:
    file = write_predictions(tmp_path / "mine.json", [GOLD] * 9 + [FAILS])
    for share, passes in ((0.9, True), (0.91, False), (0.0, True)):
        settings = EvaluateSettings(gate=0.9, gate_scored=share)
        assert evaluate_predictions(settings, {"mine": file}, str(databases), tmp_path / "out").passed is passes


def test_several_reasons_are_counted_separately(databases: Path, tmp_path: Path) -> None:
    file = write_predictions(tmp_path / "mine.json", [GOLD, FAILS])
    records = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps([*records, *[record | {"db_id": "motel"} for record in records]]), encoding="utf-8")
    report = evaluate_predictions(EvaluateSettings(), {"mine": file}, str(databases), tmp_path / "out")
    assert report.headline.endswith(
        "; 3 of 4 questions not scored: the database is missing (2), the gold query fails (1)"
    )


def test_questions_that_the_student_did_not_answer_are_stated(databases: Path, tmp_path: Path) -> None:
    files = {
        "student": write_predictions(tmp_path / "student.json", [GOLD]),
        "other": write_predictions(tmp_path / "other.json", [GOLD] * 4),
    }
    report = evaluate_predictions(EvaluateSettings(gate=0.9), files, str(databases), tmp_path / "out")
    assert report.headline.endswith("; 3 of 4 questions not scored: no prediction by student")
    assert not report.passed


def scored(dataset: Path, databases: Path, **settings: Any) -> tuple[list[Item], Report]:
    """Score right answers to a dataset's questions, as `evaluate` does with a model's answers."""
    options = EvaluateSettings.model_validate(settings)
    with SqliteDatabases(databases, 5) as opened:
        asked = load_questions(dataset, opened, options)
        items, _ = score({"student": [predicted(one, one.sql, USAGE) for one in asked.examples]}, opened)
    return items, summarize("student", items, asked.missing, options, not_asked=asked.not_asked)


def drop(dataset: Path, *splits: str) -> None:
    dropped = [
        {"id": f"d{number}", "db_id": "hotel", "split": split, "reason": "too long", "tokens": 9999}
        for number, split in enumerate(splits)
    ]
    (dataset / "dataset_card.json").write_text(json.dumps({"databases": "x", "dropped": dropped}), encoding="utf-8")


def test_questions_that_preprocess_dropped_are_in_the_headline(dataset: Path, databases: Path) -> None:
    drop(dataset, "unseen value", "train", "unseen wording", "train")
    _, report = scored(dataset, databases)
    assert report.headline.endswith(
        "of 4; 3 of 7 questions not scored: dropped by preprocess (2), the gold query fails (1)"
    )


def test_the_gate_counts_dropped_questions_of_its_split(dataset: Path, databases: Path) -> None:
    drop(dataset, *["unseen value"] * 4)
    assert scored(dataset, databases, gate=0.5, gate_split="unseen wording")[1].passed
    report = scored(dataset, databases, gate=0.5, gate_split="unseen value")[1]
    assert report.gate_reasons == [
        "5 of 7 questions not scored: dropped by preprocess (4), the gold query fails (1) on the split 'unseen value'; "
        "at least 50% must be scored"
    ]


def test_a_sample_states_what_could_not_be_drawn(dataset: Path, databases: Path, examples: list[Example]) -> None:
    drop(dataset, *["unseen value"] * 20)
    write_examples(dataset / "dev.jsonl", [replace(examples[0], id=str(number)) for number in range(20)])
    _, report = scored(dataset, databases, limit=5, gate=0.5, gate_scored=0.5)
    assert report.headline.endswith("of 5; 20 of 40 questions of the dataset not scored: dropped by preprocess")
    assert report.passed
    assert not scored(dataset, databases, limit=5, gate=0.5, gate_scored=0.51)[1].passed


@pytest.mark.parametrize("card", ["not JSON", "[]", '{"dropped": [1]}', '{"dropped": 3}'])
def test_a_card_that_cannot_be_read_is_a_warning(
    card: str, dataset: Path, databases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "dataset_card.json").write_text(card, encoding="utf-8")
    assert scored(dataset, databases)[1].coverages[0].total == 5
    assert "dataset_card.json does not tell which questions preprocess dropped" in capsys.readouterr().err


def write_run(folder: Path, early_stopping: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"early_stopping": early_stopping}), encoding="utf-8")
    return folder


def test_questions_that_chose_the_adapter_do_not_count_for_the_gate(
    dataset: Path, databases: Path, tmp_path: Path
) -> None:
    student = answering_gguf(tmp_path / "student", ["SELECT", " count", "(*)", " FROM", " hotel", ";"])
    adapter = write_run(tmp_path / "adapter", {"by": "accuracy", "questions": ["q0", "q1"]})
    places = [dataset, "--student", student, "--adapter", adapter, "--databases", databases]
    settings = {"gate": 0.4, "max_tokens": 16, "context_length": 512, "score_base": "false"}
    options = [word for name, value in settings.items() for word in ("--set", f"evaluate.{name}={value}")]

    # The student is right on q0 and q1 and wrong on q2 and q3; q4 has a gold query that fails.
    done = finished_process("evaluate", *places, "--output", tmp_path / "out", *options)

    assert done.returncode == 4
    assert "accuracy 0.0%, the gate is 40.0%" in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert (report["chose_adapter"], report["gate_accuracy"]) == (2, 0.0)
    assert report["systems"]["student"]["strict"]["correct"] == 2
    assert report["systems"]["student"]["groups"]["adapter"]["chose the adapter"]["correct"] == 2
    caveat = "2 questions chose the adapter during training and do not count for the gate: 0.0% of the others"
    for name in ("report.md", "report.html"):
        assert caveat in (tmp_path / "out" / name).read_text("utf-8")


def test_a_gate_of_which_no_question_is_left_is_not_passed(dataset: Path, databases: Path, tmp_path: Path) -> None:
    items, _ = scored(dataset, databases)
    chosen = [replace(item, chose_adapter=True) for item in items]
    settings = EvaluateSettings(gate=0.1)
    with SqliteDatabases(databases, 5) as opened:
        report = write_report("student", chosen, {}, settings, opened, tmp_path / "out")
    assert not report.passed
    assert re.search(r"no question is left: all 4 chose the adapter", " ".join(report.gate_reasons))


@pytest.mark.parametrize(
    ("early_stopping", "ids", "warns"),
    [
        (None, set(), False),
        ({"by": "loss", "questions": ["a", "b"]}, {"a", "b"}, False),
        ({"by": "accuracy", "best": None}, set(), True),  # an earlier version of train
    ],
)
def test_the_adapter_names_the_questions_that_chose_it(
    early_stopping: object, ids: set[str], warns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert questions_that_chose(write_run(tmp_path / "adapter", early_stopping)) == ids
    assert ("does not name the dev questions" in capsys.readouterr().err) is warns


def test_an_adapter_folder_that_is_none_is_an_error_or_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert questions_that_chose(tmp_path) == set()
    assert "run.json is missing: if dev questions chose the adapter, they count for the gate" in capsys.readouterr().err
    words = ("evaluate", tmp_path, "--student", tmp_path / "x.gguf", "--adapter", tmp_path / "nowhere")
    done = finished_process(*words, "--output", tmp_path / "out")
    assert done.returncode == 3 and "nowhere: no such folder; name the adapter folder" in done.stderr


def test_a_damaged_run_record_is_an_error_before_a_model_is_served(
    dataset: Path, databases: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text('{"early_stopping": ', encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.json: cannot be read"):
        evaluate(
            EvaluateSettings(),
            dataset,
            str(databases),
            tmp_path / "no.gguf",
            None,
            tmp_path / "out",
            None,
            questions_that_chose(tmp_path),
        )
