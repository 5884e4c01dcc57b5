"""The whole step, with the scripted teacher in its own process."""

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
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.descriptions import Descriptions, KnownDatabases, write_descriptions
from chatmetrics.components.nl2sql.example import Example, read_examples, write_examples
from tests.distill.shop import make_shop, question

ITEMS = ("tea", "茶", "cup")


def examples(split: str, number: int) -> list[Example]:
    """Questions with gold queries whose result changes with every mistake."""
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


class Distilled:
    """One run of the step, and its output."""

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
    """A teacher that answers 30 % of the questions wrong."""
    with scripted_teacher([dataset / "train.jsonl", dataset / "dev.jsonl"], 0.3, "--log", str(log)) as endpoint:
        yield endpoint


def requests(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_only_correct_answers_are_trained_on(dataset: Path, teacher: str) -> None:
    distilled = Distilled(dataset, teacher, gold="never")
    gold = {example.id: example.sql for example in read_examples(dataset / "train.jsonl")}
    assert 0 < distilled.done.counts.passing < distilled.done.counts.samples == 72
    assert len(distilled.train) == distilled.done.counts.passing_questions == distilled.done.examples["teacher"]
    assert all(example.output == gold[example.id] for example in distilled.train)
    assert all("I look for the tables" in example.reasoning for example in distilled.train)


def test_without_verification_mistakes_are_trained_on(dataset: Path, teacher: str) -> None:
    distilled = Distilled(dataset, teacher, samples=1, verification="none", gold="never")
    gold = {example.id: example.sql for example in read_examples(dataset / "train.jsonl")}
    wrong = sum(example.output != gold[example.id] for example in distilled.train)
    assert (len(distilled.train), wrong > 2) == (24, True)


def test_gold_replaces_missing_answers(dataset: Path, teacher: str) -> None:
    fallback = Distilled(dataset, teacher, samples=1)
    assert len({example.id for example in fallback.train}) == len(fallback.train) == 24
    assert fallback.done.examples["gold"] == 24 - fallback.done.counts.passing_questions > 0


def test_the_teachers_answers_get_the_form_of_the_dataset(dataset: Path, teacher: str) -> None:
    card = json.loads((dataset / "dataset_card.json").read_bytes())
    (dataset / "dataset_card.json").write_text(json.dumps(card | {"sql_form": "from_first", "plan": "tables"}))
    distilled = Distilled(dataset, teacher, gold="never")
    assert len(distilled.train) > 10
    for example in distilled.train:
        assert example.output.startswith("Tables: item\nFROM item WHERE item.name = "), example.output
        assert example.sql.startswith("SELECT name, ")
        assert sql_from_answer(example.output).startswith("SELECT item.name, ")


def test_changed_selection_sends_no_requests(dataset: Path, teacher: str, log: Path) -> None:
    first = Distilled(dataset, teacher)
    assert requests(log) == 24 * 3 + 10
    for change in ({"gold": "add"}, {"verification": "none"}, {"keep_samples": 3}, {"train_on": "reasoning"}):
        again = Distilled(dataset, teacher, **change)
        assert requests(log) == first.done.spending.requests == again.done.spending.requests
    assert all(
        example.output.startswith("<think>\nThe question is about") for example in again.train if "#" in example.id
    )
    Distilled(dataset, teacher, samples=4)
    assert requests(log) == 24 * 4 + 10


@pytest.mark.parametrize("earlier", [{"samples": 8}, {"samples": 8, "model": "another"}, {"samples": 4, "rounds": 2}])
def test_answers_of_earlier_runs_do_not_hide_missing_ones(
    earlier: dict[str, Any], dataset: Path, teacher: str, tmp_path: Path
) -> None:
    Distilled(dataset, teacher, **earlier)
    files = [dataset / "train.jsonl", dataset / "dev.jsonl"]
    fails = {"max_unanswered": 0.1, "attempts": 1, "score_teacher": False, "samples": 1, "backoff_seconds": 0.01}
    with scripted_teacher(files, 0.0, "--error-500", "0.3") as failing:
        with pytest.raises(ServiceError, match=r"^[4-9] of 24 requests to .* have no answer, more than .* \(10%\)"):
            Distilled(dataset, failing, **fails)
        # The same share of the requests is accepted if the recipe allows it.
        assert Distilled(dataset, failing, **{**fails, "max_unanswered": 0.9}).train


def test_the_teachers_dev_answers_are_written_for_the_report(dataset: Path, teacher: str) -> None:
    distilled = Distilled(dataset, teacher)
    wrong = [answer for answer in distilled.teachers() if answer["predicted"] != answer["gold"]]
    assert (len(distilled.teachers()), 0 < len(wrong) < 10) == (10, True)
    assert [example.id for example in distilled.dev] == [f"dev-{index}" for index in range(10)]
    assert not (Distilled(dataset, teacher, score_teacher=False).folder / "teacher.jsonl").exists()


def test_the_card_has_results_and_cost(dataset: Path, teacher: str) -> None:
    distilled = Distilled(dataset, teacher, prompt_price=1.0, completion_price=2.0)
    card = json.loads((distilled.folder / "dataset_card.json").read_bytes())
    spending = card["distillation"]["spending"]
    paid = [json.loads(line) for line in (distilled.folder / "ledger.jsonl").read_text().splitlines()]
    assert len(paid) == spending["requests"] == spending["answered"] == 82
    assert sum(line["cost"] for line in paid) == pytest.approx(spending["cost"])
    tokens = (sum(line[name] for line in paid) for name in ("prompt_tokens", "completion_tokens"))
    assert spending["cost"] == pytest.approx(sum(n * price / 1000 for n, price in zip(tokens, (1, 2), strict=True)))
    people = (distilled.folder / "dataset_card.md").read_text("utf-8")
    assert people.startswith("# Dataset card\n") and "## Distillation: teacher, round 1" in people
    assert "result differs from the gold query's" in people
    assert card["splits"] == {"train": 24, "dev": 10}
    assert (distilled.folder / "databases" / "shop" / "shop.sqlite").is_file()


def test_repaired_answers_are_trained_on_and_counted_in_the_card(dataset: Path, tmp_path: Path) -> None:
    misspelled = [replace(item, sql=item.sql.replace("name, ", "nmae, ")) for item in examples("train", 24)]
    write_examples(tmp_path / "script.jsonl", [*misspelled, *examples("dev", 10)])
    gold = [example.sql for example in examples("train", 24)]
    with scripted_teacher([tmp_path / "script.jsonl"], 0.0) as endpoint:
        before = Distilled(dataset, endpoint)
        after = Distilled(dataset, endpoint, bind_names=True, gold="never")
        people = (after.folder / "dataset_card.md").read_text("utf-8")
    assert (before.done.counts.passing, before.done.counts.repaired, before.done.examples["gold"]) == (0, 0, 24)
    assert [example.output for example in after.train] == gold
    passing = after.done.counts.repaired_passing
    assert passing == after.done.counts.repaired == after.done.counts.passing > 24
    assert f"Names were repaired in {passing} samples, of which {passing} pass." in people


def test_unlabeled_questions_are_answered_by_majority(dataset: Path, tmp_path: Path) -> None:
    known = examples("own", 6)
    write_examples(tmp_path / "script.jsonl", [*known, *examples("train", 24), *examples("dev", 10)])
    lines = [{"question": example.question, "db_id": "shop"} for example in known]
    lines.append({"question": "What does nobody know?", "db_id": "shop"})
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with scripted_teacher([tmp_path / "script.jsonl"], 0.1) as endpoint:
        distilled = Distilled(dataset, endpoint, unlabeled_questions=str(own), samples=5)
    answered = {example.question: example.output for example in distilled.train}
    assert (
        distilled.done.examples["unlabeled questions"]
        == len(set(answered) & {example.question for example in known})
        >= 5
    )
    assert all(answered.get(example.question, example.sql) == example.sql for example in known)
    assert "What does nobody know?" not in answered


def test_a_teacher_gets_the_evidence_of_a_question(dataset: Path, tmp_path: Path) -> None:
    (known,) = examples("own", 1)
    script = replace(known, input=f"{known.question}\nEvidence: called means name")
    write_examples(tmp_path / "script.jsonl", [script, *examples("train", 24), *examples("dev", 10)])
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"question": known.question, "Evidence": "called\nmeans name", "db_id": "shop"}))
    with scripted_teacher([tmp_path / "script.jsonl"], 0.0) as endpoint:
        distilled = Distilled(dataset, endpoint, unlabeled_questions=str(own))
    (trained,) = [example for example in distilled.train if example.question == known.question]
    assert (trained.input, trained.evidence) == (script.input, "called\nmeans name")


def test_the_terms_that_an_unlabeled_question_names_are_its_evidence(dataset: Path, tmp_path: Path) -> None:
    (known,) = examples("own", 1)
    write_descriptions(dataset, KnownDatabases({}, Descriptions(terms={known.question: "what is asked", "zzz": "no"})))
    script = replace(known, input=f"{known.question}\nEvidence: {known.question}: what is asked")
    write_examples(tmp_path / "script.jsonl", [script, *examples("train", 24), *examples("dev", 10)])
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"question": known.question, "db_id": "shop"}))
    with scripted_teacher([tmp_path / "script.jsonl"], 0.0) as endpoint:
        distilled = Distilled(dataset, endpoint, unlabeled_questions=str(own))
    (trained,) = [example for example in distilled.train if example.question == known.question]
    assert trained.input == script.input


def test_an_unlabeled_question_with_a_used_id_is_an_error_before_any_request(
    dataset: Path, tmp_path: Path, teacher: str, log: Path
) -> None:
    own = tmp_path / "own.csv"
    own.write_text("id,question,db_id\ntrain-3,How many items?,shop\n")
    with pytest.raises(InputError, match=r"own.csv: the id 'train-3' is already used in the dataset"):
        Distilled(dataset, teacher, unlabeled_questions=str(own))
    assert requests(log) == 0


def test_questions_of_held_out_sets_are_kept_and_not_trained_on(
    dataset: Path, tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (held_out,) = [replace(example, split="mine") for example in examples("own", 1)]
    write_examples(dataset / "held_out.jsonl", [held_out])
    own = tmp_path / "own.jsonl"
    lines = [{"question": words, "db_id": "shop"} for words in (held_out.question.upper(), "New?")]
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    distilled = Distilled(dataset, teacher, unlabeled_questions=str(own))
    assert "1 questions are left out: a held-out set has them" in capsys.readouterr().err
    assert held_out.question not in {example.question for example in distilled.train}
    assert read_examples(distilled.folder / "held_out.jsonl") == [held_out]
    card = json.loads((distilled.folder / "dataset_card.json").read_bytes())
    assert card["splits"] == {"train": 24, "dev": 10, "mine": 1}


def test_a_later_round_asks_where_the_student_fails(dataset: Path, teacher: str, log: Path, tmp_path: Path) -> None:
    Distilled(dataset, teacher, rounds=2, name="first")
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
    second = Distilled(dataset, teacher, report, 2, rounds=2, keep_samples=1)
    # One failed, one is unsure, one was not trained on; each gets three more samples.
    assert second.done.asked == 3
    assert requests(log) - before == 9
    assert second.done.counts.samples == 72 + 9


def test_a_question_that_the_student_was_not_asked_is_not_one_that_it_fails(
    dataset: Path, teacher: str, tmp_path: Path
) -> None:
    Distilled(dataset, teacher, rounds=2, name="first")
    report = tmp_path / "report"
    report.mkdir()
    trained = [{"db_id": "shop", "question": example.question} for example in examples("train", 20)]
    items = [{**item, "system": "student", "strict": index > 0} for index, item in enumerate(trained[:10])]
    (report / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (report / "not-drawn.jsonl").write_text("".join(json.dumps(item) + "\n" for item in trained[10:]))
    # One failed, and four were not trained on.
    assert Distilled(dataset, teacher, report, 2, rounds=2).done.asked == 5


def test_the_first_round_can_skip_questions_with_gold(dataset: Path, teacher: str, log: Path) -> None:
    distilled = Distilled(dataset, teacher, rounds=2, first_round="unlabeled", score_teacher=False)
    assert (distilled.done.asked, distilled.done.examples["gold"], requests(log)) == (0, 24, 0)


def test_a_database_without_questions_is_enough(dataset: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    write_examples(script, examples("train", 24))
    for name in ("train.jsonl", "dev.jsonl"):
        (dataset / name).write_text("")
    synthesis = {
        "questions_per_database": 4,
        "max_similarity": 1.0,
        "query_types": ["single table"],
        "dev_fraction": 0.3,
    }
    with scripted_teacher([script], 0.0) as endpoint:
        distilled = Distilled(dataset, endpoint, synthesis=synthesis, samples=2)
    assert len(distilled.train) + len(distilled.dev) == 4
    assert distilled.done.examples["synthesized"] == len(distilled.train) > 0
    assert distilled.done.coverage["shop"].by_query_type == {"single table": 4}
    assert {example.split for example in distilled.dev} == {"synthesized"}


def test_a_dry_run_estimates_the_total_cost(dataset: Path, teacher: str, log: Path, tmp_path: Path) -> None:
    settings = DistillSettings.model_validate(
        {"base_url": teacher, "model": "t", "samples": 3, "prompt_price": 1, "completion_price": 1}
    )
    ledger = str(tmp_path / "ledger")
    text = estimate(settings, dataset, ledger)
    assert text.startswith("72 requests for 24 questions, 10 for the teacher's own score; 77 are not answered yet")
    assert requests(log) == 5
    estimated = float(text.partition("about ¥")[2].partition(",")[0])
    done = distill(settings, dataset, tmp_path / "out", ledger)
    assert requests(log) == 82  # the five are not requested again
    assert done.spending.cost == pytest.approx(estimated, rel=0.2)


def test_invalid_input_is_refused_before_any_request(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="base_url is empty"):
        Distilled(dataset, "")
    with pytest.raises(InputError, match="is the input dataset"):
        Distilled(dataset, "scripted", name="dataset")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="contains something that is not a dataset"):
        Distilled(dataset, "scripted", name="precious")


def test_no_correct_answer_is_an_error(dataset: Path) -> None:
    with (
        scripted_teacher([dataset / "train.jsonl", dataset / "dev.jsonl"], 1.0) as endpoint,
        pytest.raises(InputError, match="nothing is left to train on: 0 of 24 samples pass"),
    ):
        Distilled(dataset, endpoint, samples=1, gold="never")
    assert not dataset.with_name("distilled").exists()


def test_a_ledger_in_use_by_another_process_is_refused(dataset: Path, teacher: str) -> None:
    import fcntl

    ledger = dataset.with_name("ledger")
    ledger.mkdir()
    with (ledger / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process uses this ledger"):
            Distilled(dataset, teacher)
