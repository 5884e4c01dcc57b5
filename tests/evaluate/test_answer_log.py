"""Answers are kept as they come, next to the report and in a folder or bucket that outlives the machine."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.answer_log import AnswerLog
from chatmetrics.components.evaluate.evaluate import evaluate
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.example import Example, write_examples
from chatmetrics.components.storage.store import open_store
from tests.gguf_files import answering_gguf
from tests.waiting import wait_until

QUICK = EvaluateSettings(max_tokens=16, concurrency=1, context_length=512, acceptance_test_questions=0)
WORDS = ["SELECT", " count", "(*)", " FROM", " hotel", ";"]
# The copies of the killed process are frequent, so that the test does not wait for one.
KILLED = """
import sys
from pathlib import Path
from chatmetrics.components.evaluate import answer_log
from chatmetrics.components.evaluate.evaluate import evaluate
from chatmetrics.components.evaluate.settings import EvaluateSettings
answer_log.SECONDS_BETWEEN_COPIES = 0.02
settings, dataset, databases, student, output, answers = sys.argv[1:]
settings = EvaluateSettings.model_validate_json(settings)
evaluate(settings, Path(dataset), databases, Path(student), None, Path(output), None, answers=answers)
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering_gguf(tmp_path_factory.mktemp("student"), WORDS)


@pytest.fixture
def many(dataset: Path, examples: list[Example]) -> Path:
    """A dataset of 200 questions."""
    asked = [replace(examples[0], id=f"m{number}", input=f"{number}?", question=f"{number}?") for number in range(200)]
    write_examples(dataset / "dev.jsonl", asked)
    return dataset


def test_a_killed_attempt_is_resumed_on_another_machine(
    many: Path, databases: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, places = tmp_path / "kept", [str(many), str(databases), str(student)]
    words = [sys.executable, "-c", KILLED, QUICK.model_dump_json(), *places, str(tmp_path / "first"), str(kept)]
    process = subprocess.Popen(words, start_new_session=True)
    wait_until(lambda: any(path.stat().st_size for path in kept.glob("answers-*")), 60)
    os.killpg(process.pid, signal.SIGKILL)  # with its server
    process.wait()
    [copy] = kept.glob("answers-*")
    answered = len([line for line in copy.read_text("utf-8").splitlines() if line.endswith("}")])
    assert 0 < answered < 200
    capsys.readouterr()

    report = evaluate(QUICK, many, str(databases), student, None, tmp_path / "second", None, answers=str(kept))

    assert f"{answered} of 200 answers of the student are from an earlier attempt" in capsys.readouterr().err
    assert report.systems["student"].strict.correct == report.questions == 200
    assert len((kept / copy.name).read_text("utf-8").splitlines()) == 200
    assert not list((tmp_path / "second").glob("answers-*"))


def test_an_answer_of_another_model_prompt_or_setting_is_not_used(
    dataset: Path,
    databases: Path,
    student: Path,
    examples: list[Example],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept, output = str(tmp_path / "kept"), tmp_path / "out"

    def reused(settings: EvaluateSettings, model: Path) -> bool:
        capsys.readouterr()
        evaluate(settings, dataset, str(databases), model, None, output, None, answers=kept)
        return "from an earlier attempt" in capsys.readouterr().err

    assert not reused(QUICK, student)
    assert reused(QUICK, student)
    assert not reused(QUICK.model_copy(update={"max_tokens": 15}), student)
    sampling = QUICK.model_copy(update={"sampled_answers": 2})
    assert not reused(sampling, student)
    assert reused(sampling, student)
    assert all("agreement" in line for line in (output / "items.jsonl").read_text("utf-8").splitlines())
    assert not reused(QUICK, answering_gguf(tmp_path / "other", ["SELECT", " 7"]))
    write_examples(dataset / "dev.jsonl", [replace(example, system="another schema") for example in examples])
    assert not reused(QUICK, student)


def test_the_base_can_be_asked_fewer_questions(dataset: Path, databases: Path, student: Path, tmp_path: Path) -> None:
    base = answering_gguf(tmp_path / "base", ["SELECT", " 7"])
    settings = QUICK.model_copy(update={"base_limit": 2})
    report = evaluate(settings, dataset, str(databases), student, base, tmp_path / "out", None)
    lines = (tmp_path / "out" / "predictions-base.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["q0", "q2"]
    assert report.systems["student"].strict.total == 4
    assert report.comparisons[0].questions == 2


@pytest.mark.parametrize("content", ["", "{", '{"no": "key"}\n', "[1]\n", '{"key": "a", "predicted": "SELECT 1"}\n{"k'])
def test_damaged_lines_are_asked_again(content: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(content, encoding="utf-8")
    with AnswerLog(path, "model") as log:
        assert set(log.answered) == ({"a"} if '"a"' in content else set())
        log.append("b", {"predicted": "SELECT 2"})
    with AnswerLog(path, "model") as log:
        assert log.answered["b"] == {"predicted": "SELECT 2"}


def test_answers_are_kept_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    folder = f"s3://{bucket}/run/answers"
    with AnswerLog(tmp_path / "first" / "answers.jsonl", "model", folder) as log:
        log.append("a", {"predicted": "SELECT '浦东'"})
    assert open_store(folder).exists("answers.jsonl")
    with AnswerLog(tmp_path / "second" / "answers.jsonl", "model", folder) as log:
        assert log.answered == {"a": {"predicted": "SELECT '浦东'"}}


def test_a_store_that_does_not_answer_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with AnswerLog(tmp_path / "answers.jsonl", "model", str(tmp_path / "file" / "folder")) as log:
        log.append("a", {"predicted": "SELECT 1"})
    assert "are not copied to" in capsys.readouterr().err
    with AnswerLog(tmp_path / "answers.jsonl", "model") as log:
        assert set(log.answered) == {"a"}
