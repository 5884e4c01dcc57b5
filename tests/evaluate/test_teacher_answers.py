"""The teacher's answers from the dataset, and the gate's threshold relative to the teacher."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from chatmetrics.components.errors import GateError, InputError
from chatmetrics.components.evaluate.evaluate import evaluate, evaluate_endpoint, evaluate_predictions
from chatmetrics.components.evaluate.predictions import TokenUsage, predicted, write_records
from chatmetrics.components.evaluate.report import Report
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.pipelines.cli import steps
from tests.gguf_files import answering_gguf

QUICK = EvaluateSettings(max_tokens=16, concurrency=2, context_length=512)
USAGE = TokenUsage(latency=20.0, first_token=4.0, prompt_tokens=300, completion_tokens=700, truncated=False)

Evaluated = Callable[..., Report]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that counts the hotels, which is right for q0 and q1 of the four questions that count."""
    return answering_gguf(tmp_path_factory.mktemp("student"), ["SELECT", " count", "(*)", " FROM", " hotel"])


@pytest.fixture
def evaluated(dataset: Path, student: Path, tmp_path: Path) -> Evaluated:
    def run(**settings: object) -> Report:
        return evaluate(QUICK.model_copy(update=settings), dataset, "", student, None, tmp_path / "report", None)

    return run


def write_teacher(dataset: Path, examples: Sequence[Example], wrong: Sequence[str] = ()) -> None:
    answers = [predicted(example, "SELECT 0" if example.id in wrong else example.sql, USAGE) for example in examples]
    write_records(dataset / "teacher.jsonl", (answer.fields for answer in answers))


def test_the_teacher_is_scored_next_to_its_student(
    evaluated: Evaluated, dataset: Path, examples: list[Example], tmp_path: Path
) -> None:
    write_teacher(dataset, examples, wrong=["q2"])
    report = evaluated()
    assert list(report.systems) == ["student", "teacher"]
    assert (report.systems["teacher"].strict.correct, report.systems["teacher"].strict.total) == (3, 4)
    (comparison,) = report.comparisons
    assert (comparison.first, comparison.second, comparison.questions) == ("teacher", "student", 4)
    assert (report.passed, report.thresholds, report.teacher_accuracy) == (True, [], 0.75)

    assert report.systems["teacher"].speed is not None and report.costs is not None
    cost = report.costs.systems["teacher"]
    assert cost.api_question == pytest.approx(0.5) and cost.machines is cost.machine_month is None
    assert report.costs.systems["student"].machine_month is not None

    written = Report.model_validate_json((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert written == report
    assert (tmp_path / "report" / "predictions-teacher.jsonl").is_file()
    assert "| own machines, per month | ¥7,200 | – |" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert report.acceptance_test is not None and report.acceptance_test.questions == 3


def test_only_the_student_s_questions_count_and_some_teacher_answers_may_be_missing(
    evaluated: Evaluated, dataset: Path, examples: list[Example]
) -> None:
    write_teacher(dataset, [examples[2], examples[1], examples[1]])
    report = evaluated(limit=2)  # asks q0 and q2
    assert report.questions == 2
    assert [score.strict.total for score in report.systems.values()] == [2, 1]
    assert report.comparisons[0].questions == 1


def test_a_teacher_without_answers_to_these_questions_is_ignored(
    evaluated: Evaluated, dataset: Path, examples: list[Example], capsys: pytest.CaptureFixture[str]
) -> None:
    write_teacher(dataset, examples[1:2])
    assert list(evaluated(limit=2).systems) == ["student"]
    assert "teacher.jsonl has no answers to the questions that are asked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "passed", "said"),
    [
        ({"gate_teacher": 0.5}, True, "50.0 points below the teacher (50.0% against 100.0% of 4 questions)"),
        ({"gate_teacher": 0.4}, False, "(50.0% against 100.0% of 4 questions), at most 40.0 below are allowed"),
        (
            {"gate_teacher": 0.5, "gate_split": "unseen value"},
            True,
            "(50.0% against 100.0% of 2 questions on the split 'unseen value')",
        ),
        ({"gate_teacher": 1.0, "gate": 0.6}, False, "accuracy 50.0%, the gate is 60.0%"),
        ({"gate_teacher": 0.1, "gate": 0.5}, False, "accuracy 50.0%, the gate is 50.0%"),
    ],
)
def test_the_gate_has_two_thresholds(
    settings: dict[str, object],
    passed: bool,
    said: str,
    evaluated: Evaluated,
    dataset: Path,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    write_teacher(dataset, examples)
    report = evaluated(**settings)
    assert report.passed == passed == (not report.gate_reasons)
    assert len(report.thresholds) == len(settings.keys() & {"gate", "gate_teacher"})
    assert any(said in threshold.sentence for threshold in report.thresholds)
    markdown, page = ((tmp_path / "report" / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    for threshold in report.thresholds:
        assert f"Gate: {threshold.sentence}: **{'passed' if threshold.passed else 'NOT passed'}**." in markdown
        assert threshold.sentence.replace("'", "&#39;") in page


def test_rounding_does_not_change_a_distance_of_five_points(
    examples: list[Example], databases: Path, tmp_path: Path
) -> None:
    """In floating-point arithmetic, 0.8 - 0.75 is more than 0.05."""
    many = [examples[0]] * 20
    files = {}
    for name, right in (("student", 15), ("teacher", 16)):
        answers = [predicted(e, e.sql if number < right else "SELECT 0", USAGE) for number, e in enumerate(many)]
        files[name] = tmp_path / f"{name}.jsonl"
        write_records(files[name], (answer.fields for answer in answers))
    passed = {
        allowed: evaluate_predictions(
            EvaluateSettings(gate_teacher=allowed), files, str(databases), tmp_path / "report"
        ).passed
        for allowed in (0.04, 0.05)
    }
    assert passed == {0.04: False, 0.05: True}


def test_the_gate_is_not_passed_if_there_is_nothing_to_compare(
    evaluated: Evaluated, dataset: Path, examples: list[Example]
) -> None:
    write_teacher(dataset, examples[4:])  # its gold query fails
    report = evaluated(gate_teacher=1.0)
    assert (report.passed, report.teacher_accuracy) == (False, None)
    assert report.gate_reasons == ["no question was answered by student and teacher"]


def test_missing_teacher_answers_are_an_error_before_a_model_is_served(
    dataset: Path, examples: list[Example], tmp_path: Path
) -> None:
    settings, gguf, output = QUICK.model_copy(update={"gate_teacher": 0.1}), tmp_path / "no.gguf", tmp_path / "report"
    with pytest.raises(InputError, match=r"the dataset lacks the teacher's answers: .*teacher\.jsonl is missing"):
        evaluate(settings, dataset, "", gguf, None, output, None)
    write_teacher(dataset, examples[:1])
    with pytest.raises(InputError, match="has no answers to the gate's questions"):
        evaluate(settings.model_copy(update={"gate_split": "unseen wording"}), dataset, "", gguf, None, output, None)
    with pytest.raises(InputError, match="need a student as a GGUF file"):
        evaluate_endpoint(settings, dataset, "", "http://127.0.0.1:9", "m", output)
    with pytest.raises(InputError, match="name it with --predictions teacher=FILE"):
        evaluate_predictions(settings, {"teacher": dataset / "teacher.jsonl"}, str(dataset), output)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"teacher\.jsonl:1: not JSON"),
        ('{"db_id": "hotel", "gold": "SELECT 1", "predicted": "SELECT 1"}\n{}', r"teacher\.jsonl:2: the field 'db_id'"),
        ("", r"teacher\.jsonl: contains no predictions"),
    ],
)
def test_a_malformed_file_of_teacher_answers_is_an_error(
    text: str, message: str, dataset: Path, tmp_path: Path
) -> None:
    (dataset / "teacher.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        evaluate(QUICK, dataset, "", tmp_path / "no.gguf", None, tmp_path / "report", None)


def test_the_command_names_the_threshold_that_was_missed(
    dataset: Path, examples: list[Example], student: Path, tmp_path: Path
) -> None:
    write_teacher(dataset, examples)
    overrides = [f"evaluate.{key}={value}" for key, value in QUICK.model_dump(exclude_defaults=True).items()]
    overrides += ["evaluate.gate=0.4", "evaluate.gate_teacher=0.1"]
    with pytest.raises(GateError) as error:
        steps.evaluate(output=tmp_path / "report", dataset=dataset, student=str(student), overrides=overrides)
    assert str(error.value).startswith("50.0 points below the teacher (50.0% against 100.0% of 4 questions), at most")
    assert json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["passed"] is False
