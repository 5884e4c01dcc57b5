"""From a dataset to what the student learns, with the scripted teacher as a process of its own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from chatmetrics.components.distill.distill import distill
from chatmetrics.components.distill.distilled_dataset import Distillation
from chatmetrics.components.distill.dry_run import estimate
from chatmetrics.components.distill.scripted.server import scripted_teacher
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example, read_examples, write_examples
from tests.distill.shop import make_shop, question

ITEMS = ("tea", "茶", "cup")


def examples(split: str, number: int) -> list[Example]:
    """Questions of whose gold every change changes the result."""
    return [
        replace(
            question(
                f"SELECT name, {index} FROM item WHERE name = '{ITEMS[index % 3]}'",
                f"{split}-{index}",
                words=f"{split} {index}: which item is called {ITEMS[index % 3]}?",
            ),
            split=split,
        )
        for index in range(number)
    ]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    make_shop(folder / "databases")
    write_examples(folder / "train.jsonl", examples("train", 24))
    write_examples(folder / "dev.jsonl", examples("dev", 10))
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    card = {
        **{"databases": "databases", "tokenizer": str(tmp_path / "tokenizer"), "cutoff_length": 512},
        **{"schema_form": "none", "sample_values": 0, "splits": {"train": 24, "dev": 10}},
    }
    (folder / "dataset_card.json").write_text(json.dumps(card))
    (folder / "dataset_card.md").write_text("# Dataset card\n")
    return folder


class Lesson:
    """One run of the step, and what it wrote."""

    def __init__(self, dataset: Path, endpoint: str, *arguments: Any, name: str = "distilled", **settings: Any) -> None:
        values = {"base_url": endpoint, "model": "teacher", "samples": 3, "concurrency": 4, **settings}
        self.folder = dataset.with_name(name)
        ledger = str(dataset.with_name("ledger"))
        parsed = DistillSettings.model_validate(values)
        self.done: Distillation = distill(parsed, dataset, self.folder, ledger, "", *arguments)
        self.train = read_examples(self.folder / "train.jsonl")
        self.dev = read_examples(self.folder / "dev.jsonl")

    def teachers(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "teacher.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "requests.log"


@pytest.fixture
def teacher(dataset: Path, log: Path) -> Any:
    """A teacher that gets three in ten answers wrong."""
    with scripted_teacher([dataset / "train.jsonl", dataset / "dev.jsonl"], 0.3, "--log", str(log)) as endpoint:
        yield endpoint


def requests(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_only_what_is_right_is_trained_on(dataset: Path, teacher: str) -> None:
    lesson = Lesson(dataset, teacher, gold="never")
    gold = {example.id: example.sql for example in read_examples(dataset / "train.jsonl")}
    assert 0 < lesson.done.counts.passing < lesson.done.counts.samples == 72
    assert len(lesson.train) == lesson.done.counts.passing_questions == lesson.done.examples["teacher"]
    assert all(example.output == gold[example.id] for example in lesson.train)
    assert all("I look for the tables" in example.reasoning for example in lesson.train)


def test_without_verification_mistakes_are_trained_on(dataset: Path, teacher: str) -> None:
    lesson = Lesson(dataset, teacher, samples=1, verification="none", gold="never")
    gold = {example.id: example.sql for example in read_examples(dataset / "train.jsonl")}
    wrong = sum(example.output != gold[example.id] for example in lesson.train)
    assert (len(lesson.train), wrong > 2) == (24, True)


def test_gold_fills_what_the_teacher_does_not_know(dataset: Path, teacher: str) -> None:
    fallback = Lesson(dataset, teacher, samples=1)
    assert len({example.id for example in fallback.train}) == len(fallback.train) == 24
    assert fallback.done.examples["gold"] == 24 - fallback.done.counts.passing_questions > 0


def test_other_choices_ask_nothing(dataset: Path, teacher: str, log: Path) -> None:
    first = Lesson(dataset, teacher)
    assert requests(log) == 24 * 3 + 10
    for change in ({"gold": "add"}, {"verification": "none"}, {"keep_samples": 3}, {"train_on": "reasoning"}):
        again = Lesson(dataset, teacher, **change)
        assert requests(log) == first.done.spending.requests == again.done.spending.requests
    assert all(
        example.output.startswith("<think>\nThe question is about") for example in again.train if "#" in example.id
    )
    Lesson(dataset, teacher, samples=4)
    assert requests(log) == 24 * 4 + 10


def test_the_teachers_own_score_is_left_for_the_report(dataset: Path, teacher: str) -> None:
    lesson = Lesson(dataset, teacher)
    wrong = [answer for answer in lesson.teachers() if answer["predicted"] != answer["gold"]]
    assert (len(lesson.teachers()), 0 < len(wrong) < 10) == (10, True)
    assert [example.id for example in lesson.dev] == [f"dev-{index}" for index in range(10)]
    assert not (Lesson(dataset, teacher, score_teacher=False).folder / "teacher.jsonl").exists()


def test_the_card_says_what_was_done_and_what_it_cost(dataset: Path, teacher: str) -> None:
    lesson = Lesson(dataset, teacher, prompt_price=1.0, completion_price=2.0)
    card = json.loads((lesson.folder / "dataset_card.json").read_bytes())
    spending = card["distillation"]["spending"]
    paid = [json.loads(line) for line in (lesson.folder / "ledger.jsonl").read_text().splitlines()]
    assert len(paid) == spending["requests"] == spending["answered"] == 82
    assert sum(line["money"] for line in paid) == pytest.approx(spending["money"])
    tokens = (sum(line[name] for line in paid) for name in ("prompt_tokens", "completion_tokens"))
    assert spending["money"] == pytest.approx(sum(n * price / 1000 for n, price in zip(tokens, (1, 2), strict=True)))
    people = (lesson.folder / "dataset_card.md").read_text("utf-8")
    assert people.startswith("# Dataset card\n") and "## Distillation: teacher, round 1" in people
    assert "another result than the gold query's" in people
    assert card["splits"] == {"train": 24, "dev": 10}
    assert (lesson.folder / "databases" / "shop" / "shop.sqlite").is_file()


def test_a_users_own_questions_are_answered_by_majority(dataset: Path, tmp_path: Path) -> None:
    known = examples("own", 6)
    write_examples(tmp_path / "script.jsonl", [*known, *examples("train", 24), *examples("dev", 10)])
    lines = [{"question": example.question, "db_id": "shop"} for example in known]
    lines.append({"question": "What does nobody know?", "db_id": "shop"})
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with scripted_teacher([tmp_path / "script.jsonl"], 0.1) as endpoint:
        lesson = Lesson(dataset, endpoint, questions=str(own), samples=5)
    answered = {example.question: example.output for example in lesson.train}
    assert lesson.done.examples["own questions"] == len(set(answered) & {example.question for example in known}) >= 5
    assert all(answered.get(example.question, example.sql) == example.sql for example in known)
    assert "What does nobody know?" not in answered


def test_a_question_of_the_users_with_an_id_of_the_datasets_is_an_error_before_anything_is_asked(
    dataset: Path, tmp_path: Path, teacher: str, log: Path
) -> None:
    own = tmp_path / "own.csv"
    own.write_text("id,question,db_id\ntrain-3,How many items?,shop\n")
    with pytest.raises(InputError, match=r"own.csv: the id 'train-3' is one of the dataset's"):
        Lesson(dataset, teacher, questions=str(own))
    assert requests(log) == 0


def test_a_further_round_asks_where_the_student_fails(dataset: Path, teacher: str, log: Path, tmp_path: Path) -> None:
    Lesson(dataset, teacher, rounds=2, name="first")
    before = requests(log)
    items = [
        {
            "system": "student",
            "db_id": "shop",
            "question": example.question,
            "strict": index != 3,
            "agreement": 0.5 if index == 5 else 1.0,
        }
        for index, example in enumerate(examples("train", 23))
    ]
    items += [{**items[3], "system": "base", "strict": True}]
    report = tmp_path / "report"
    report.mkdir()
    (report / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    second = Lesson(dataset, teacher, report, 2, rounds=2, keep_samples=1)
    # One failed, one is unsure, one was not trained on; each gets three further samples.
    assert second.done.asked == 3
    assert requests(log) - before == 9
    assert second.done.counts.samples == 72 + 9


def test_first_round_may_leave_out_what_has_gold(dataset: Path, teacher: str, log: Path) -> None:
    lesson = Lesson(dataset, teacher, rounds=2, first_round="without gold", score_teacher=False)
    assert (lesson.done.asked, lesson.done.examples["gold"], requests(log)) == (0, 24, 0)


def test_a_database_without_questions_is_a_start(dataset: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    write_examples(script, examples("train", 24))
    for name in ("train.jsonl", "dev.jsonl"):
        (dataset / name).write_text("")
    synthesis = {"questions": 4, "similarity": 1.0, "query_types": ["single table"], "dev_fraction": 0.3}
    with scripted_teacher([script], 0.0) as endpoint:
        lesson = Lesson(dataset, endpoint, synthesis=synthesis, samples=2)
    assert len(lesson.train) + len(lesson.dev) == 4
    assert lesson.done.examples["synthesized"] == len(lesson.train) > 0
    assert lesson.done.coverage["shop"].by_query_type == {"single table": 4}
    assert {example.split for example in lesson.dev} == {"synthesized"}


def test_a_dry_run_says_what_all_would_cost(dataset: Path, teacher: str, log: Path, tmp_path: Path) -> None:
    settings = DistillSettings.model_validate(
        {"base_url": teacher, "model": "t", "samples": 3, "prompt_price": 1, "completion_price": 1}
    )
    ledger = str(tmp_path / "ledger")
    said = estimate(settings, dataset, ledger)
    assert said.startswith("72 requests for 24 questions, 10 for the teacher's own score; 77 are not answered yet")
    assert requests(log) == 5
    promised = float(said.partition("about ¥")[2].partition(",")[0])
    done = distill(settings, dataset, tmp_path / "out", ledger)
    assert requests(log) == 82  # the five are not asked again
    assert done.spending.money == pytest.approx(promised, rel=0.2)


def test_what_cannot_be_used_is_refused_before_anything_is_asked(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="base_url is empty"):
        Lesson(dataset, "")
    with pytest.raises(InputError, match="is the dataset itself"):
        Lesson(dataset, "scripted", name="dataset")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="contains something that is not a dataset"):
        Lesson(dataset, "scripted", name="precious")


def test_nothing_right_is_an_error_that_says_so(dataset: Path) -> None:
    with (
        scripted_teacher([dataset / "train.jsonl", dataset / "dev.jsonl"], 1.0) as endpoint,
        pytest.raises(InputError, match="nothing is left to train on: 0 of 24 samples pass"),
    ):
        Lesson(dataset, endpoint, samples=1, gold="never")
    assert not dataset.with_name("distilled").exists()


def test_another_process_at_the_same_ledger_is_refused(dataset: Path, teacher: str) -> None:
    import fcntl

    ledger = dataset.with_name("ledger")
    ledger.mkdir()
    with (ledger / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process asks the teacher here"):
            Lesson(dataset, teacher)
