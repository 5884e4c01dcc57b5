"""The whole step, with served GGUF models."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.evaluate import evaluate, fetch_model
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.example import Example, read_examples, write_examples
from chatmetrics.components.serve.ask import ask
from chatmetrics.components.storage.dataset_databases import databases_of
from chatmetrics.components.storage.manifest import publish, stage
from tests.gguf_files import answering_gguf, tiny_gguf

COUNT = ["SELECT", " count", "(*)", " FROM", " hotel", ";"]
QUICK = EvaluateSettings(max_tokens=16, concurrency=2, context_length=512)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering_gguf(tmp_path_factory.mktemp("student"), COUNT)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("base"))


def test_student_and_base_are_served_asked_and_scored(
    dataset: Path, databases: Path, student: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report"
    report = evaluate(QUICK, dataset, str(databases), student, base, output, None)

    assert (report.systems["student"].strict.correct, report.systems["base"].strict.correct) == (2, 0)
    speed = report.systems["base"].speed
    assert speed is not None and speed.truncated == 4  # of those that count
    assert report.model_validate_json((output / "report.json").read_text(encoding="utf-8")) == report
    assert "浦东新区有多少家酒店？" not in (output / "report.md").read_text(encoding="utf-8")
    assert {path.name for path in output.iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
        "items.jsonl",
        "predictions-student.jsonl",
        "predictions-base.jsonl",
        "acceptance_test",
    }
    # One of the five questions has a broken gold query, and one an empty gold result.
    assert report.acceptance_test is not None
    assert (report.acceptance_test.questions, report.acceptance_test.right) == (3, 2)
    assert "The student answers 2 of 3 questions correctly, 2 are needed (threshold 50%)" in (
        output / "report.md"
    ).read_text(encoding="utf-8")
    lines = (output / "predictions-student.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    assert [json.loads(line)["id"] for line in lines] == ["q0", "q1", "q2", "q3", "q4"]
    assert (first["predicted"], first["gold"]) == ("SELECT count(*) FROM hotel",) * 2
    assert first["latency"] >= first["first_token"] > 0 and first["completion_tokens"] == len(COUNT) + 1
    assert report.headline in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        ["FROM", " hotel", " SELECT", " count", "(*)"],
        ["Tables", ":", " ho", "tel", "\n", "FROM", " hotel", " SELECT", " count", "(*)"],
        ["Tables", ":", " ho", "tel", "\n", "SELECT", " count", "(*)", " FROM", " hotel", ";"],
    ],
)
def test_answers_in_the_form_of_the_training_are_scored_as_sql(
    answer: list[str], dataset: Path, databases: Path, tmp_path: Path
) -> None:
    model = answering_gguf(tmp_path, answer)
    report = evaluate(QUICK, dataset, str(databases), model, None, tmp_path / "report", None)
    assert report.systems["student"].strict.correct == 2
    lines = (tmp_path / "report" / "predictions-student.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["predicted"] for line in lines} == {"SELECT count(*) FROM hotel"}
    assert report.acceptance_test is not None and report.acceptance_test.right == 2
    with LlamaServer(model, 512) as server:
        asked = ask("How many?", databases / "hotel" / "hotel.sqlite", server.endpoint)
    assert (asked.sql, asked.result.rows) == ("SELECT count(*) FROM hotel", [(3,)])


def test_limit_is_spread_over_the_dataset_and_the_base_can_be_skipped(
    dataset: Path, databases: Path, student: Path, base: Path, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"limit": 2, "score_base": False, "gate": 0.9})
    report = evaluate(settings, dataset, str(databases), student, base, tmp_path / "report", None)
    lines = (tmp_path / "report" / "predictions-student.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["q0", "q2"]
    assert report.acceptance_test is not None and report.acceptance_test.questions == 2
    assert list(report.systems) == ["student"] and not report.passed


def with_training_data(dataset: Path, questions: int = 4) -> list[Example]:
    """Add train.jsonl to the dataset."""
    (first, *_) = read_examples(dataset / "dev.jsonl")
    train = [
        replace(first, id=f"t{number}", question=f"How many are there in shop {number}?", db_id=f"shop_{number}")
        for number in range(questions)
    ]
    write_examples(dataset / "train.jsonl", train)
    return train


def prompt_tokens(report: Path, system: str) -> list[int]:
    lines = (report / f"predictions-{system}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt_tokens"] for line in lines]


@pytest.mark.parametrize("choice", ["random", "similar"])
def test_few_shot_prompts_are_for_the_base_alone(
    choice: str, dataset: Path, databases: Path, student: Path, base: Path, tmp_path: Path
) -> None:
    with_training_data(dataset)
    settings = QUICK.model_copy(update={"few_shot": 2, "few_shot_choice": choice, "context_length": 2048})
    report = evaluate(settings, dataset, str(databases), student, base, tmp_path / "report", None)
    zero_shot = evaluate(QUICK, dataset, str(databases), student, base, tmp_path / "zero", None)
    before, after = (prompt_tokens(tmp_path / name, "base") for name in ("zero", "report"))
    shots = "Question: How many are there in shop 0?\nSQL: SELECT count(*) FROM hotel\n\n"
    # The tokenizer of these models has about a token per byte.
    assert all(
        2 * len(shots) * 0.7 < more - fewer < 2 * len(shots) + 30 for fewer, more in zip(before, after, strict=True)
    )
    assert prompt_tokens(tmp_path / "report", "student") == prompt_tokens(tmp_path / "zero", "student")
    assert report.systems["student"].strict == zero_shot.systems["student"].strict
    assert report.acceptance_test is not None
    how = "drawn at random" if choice == "random" else "similar to the question"
    assert report.few_shot == f"prompts of base show up to 2 training questions with their SQL, {how}"
    assert report.few_shot in report.headline and not zero_shot.few_shot


def test_a_few_shot_student_has_neither_gate_nor_acceptance_test(
    dataset: Path, databases: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_training_data(dataset)
    update = {"few_shot": 3, "few_shot_for": "both", "gate": 0.99, "context_length": 1024}
    report = evaluate(
        QUICK.model_copy(update=update), dataset, str(databases), student, None, tmp_path / "report", None
    )
    assert report.passed and report.acceptance_test is None
    assert report.systems["student"].strict.correct == 2
    assert "the served student gets no few-shot prompts" in capsys.readouterr().err
    assert report.few_shot.startswith("prompts of student show up to 3")


def test_a_prompt_shows_as_many_questions_as_fit_the_context(
    dataset: Path, databases: Path, base: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_training_data(dataset, questions=12)
    settings = QUICK.model_copy(update={"few_shot": 10, "few_shot_for": "student", "context_length": 512})
    evaluate(settings, dataset, str(databases), student, base, tmp_path / "report", None)
    tokens = prompt_tokens(tmp_path / "report", "student")
    assert all(512 - 16 - 100 < count <= 512 - 16 for count in tokens)
    assert "5 of 5 prompts of the student show fewer training questions than evaluate.few_shot (10)" in (
        capsys.readouterr().err
    )


def test_too_few_training_questions_are_an_error_before_a_model_is_served(
    dataset: Path, databases: Path, student: Path, base: Path, tmp_path: Path
) -> None:
    with_training_data(dataset)
    settings = QUICK.model_copy(update={"few_shot": 9})
    with pytest.raises(InputError, match="few_shot is 9, but the dataset has only 4 training questions"):
        evaluate(settings, dataset, str(databases), student, base, tmp_path / "report", None)
    assert not list((tmp_path / "report").glob("*"))


def test_questions_without_a_database_are_counted_and_skipped(
    dataset: Path, databases: Path, examples: list[Example], student: Path, tmp_path: Path
) -> None:
    fields = {name: getattr(examples[0], name) for name in Example.__slots__}
    write_examples(dataset / "dev.jsonl", [examples[0], Example(**{**fields, "db_id": "motel", "id": "m"})])
    report = evaluate(QUICK, dataset, str(databases), student, None, tmp_path / "report", None)
    assert (report.questions, report.missing_databases) == (1, {"motel": 1})
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "Questions skipped because the database motel is missing: 1." in page


def test_unusable_input_is_an_error_before_a_model_is_served(dataset: Path, databases: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no.gguf"
    output = tmp_path / "report"
    with pytest.raises(InputError, match="'hotel' is missing"):
        evaluate(QUICK, dataset, str(tmp_path), missing, None, output, None)
    no_split = "'unseen city' has no questions; choose one of unseen value, unseen wording"
    with pytest.raises(InputError, match=no_split):
        evaluate(
            QUICK.model_copy(update={"gate_split": "unseen city"}),
            dataset,
            str(databases),
            missing,
            None,
            output,
            None,
        )
    with pytest.raises(InputError, match=r"no\.gguf"):
        evaluate(QUICK, dataset, str(databases), missing, None, output, None)
    (dataset / "dev.jsonl").write_text("")
    with pytest.raises(InputError, match="no questions"):
        evaluate(QUICK, dataset, str(databases), missing, None, output, None)
    assert not output.exists()


def test_the_databases_default_to_those_of_the_dataset(dataset: Path, databases: Path) -> None:
    assert databases_of(dataset, "postgresql://host/{db_id}") == "postgresql://host/{db_id}"
    assert Path(databases_of(dataset, "")).resolve() == databases
    (dataset / "dataset_card.json").unlink()
    with pytest.raises(InputError, match=r"dataset_card\.json"):
        databases_of(dataset, "")


def test_a_published_model_is_fetched(student: Path, tmp_path: Path) -> None:
    uri = publish(stage(str(tmp_path / "models"), "hotel", "1", [student], {}))
    assert fetch_model(uri, tmp_path / "here").read_bytes() == student.read_bytes()
    notes = tmp_path / "notes.txt"
    notes.write_text("no model")
    with pytest.raises(InputError, match="lists 0 GGUF files"):
        fetch_model(publish(stage(str(tmp_path / "models"), "notes", "1", [notes], {})), tmp_path / "there")
