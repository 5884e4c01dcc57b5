"""Real runs that measure dev questions while they train."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import read_examples, write_examples
from chatmetrics.components.train.data.tokenization import load_tokenizer
from chatmetrics.components.train.launch import train
from chatmetrics.components.train.model.dev_questions import dev_metric, dev_questions
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.train.small_dataset import CITIES, example, write_dataset

pytestmark = pytest.mark.usefixtures("quick_launches")

SETTINGS = TrainSettings(
    max_steps=40,
    checkpoint_steps=8,
    logging_steps=1,
    batch_size=4,
    gradient_accumulation=2,
    learning_rate=2e-3,
    evaluation_steps=4,
    evaluation_questions=4,
    patience=2,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training questions, dev questions with other answers, and their database."""
    folder = write_dataset(tmp_path_factory.mktemp("dataset"))
    # The same words with the answers reversed: after a while training makes these worse.
    reversed_answers = [example(number, city, f"{city} IN COUNT") for number, city in enumerate(CITIES)]
    write_examples(folder / "dev.jsonl", reversed_answers)
    (folder / "databases").mkdir()
    with sqlite3.connect(folder / "databases" / "hotel.sqlite") as database:
        database.execute("CREATE TABLE hotel (name TEXT, city TEXT)")
        database.executemany("INSERT INTO hotel VALUES (?, ?)", [(city, city) for city in CITIES])
    (folder / "dataset_card.json").write_text('{"databases": "databases"}')
    return folder


def curve(adapter: Path) -> dict[str, list[float]]:
    return dict(json.loads((adapter / "loss.json").read_bytes())["dev"])


def test_training_ends_when_dev_loss_gets_worse_and_the_best_adapter_is_kept(
    base: Path, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS.model_copy(update={"early_stopping": "loss", "learning_rate": 2e-2})
    train(settings, dataset, str(base), tmp_path / "adapter", tmp_path / "checkpoints")
    run = json.loads((tmp_path / "adapter" / "run.json").read_bytes())
    dev, best = curve(tmp_path / "adapter"), run["early_stopping"]["best"]
    assert run["early_stopping"]["questions"] == [one.id for one in dev_questions(settings, dataset)]
    assert best["value"] == min(dev["value"]) and best["step"] == dev["step"][dev["value"].index(best["value"])]
    assert dev["step"] == list(range(4, run["steps"] + 1, 4))
    assert run["steps"] == best["step"] + 8 < SETTINGS.max_steps
    assert "dev loss has not improved in 2 measurements" in capfd.readouterr().err
    # The best adapter, not the last one, which is in the last checkpoint.
    last = load_file(tmp_path / "checkpoints" / f"checkpoint-{run['steps']}" / "adapter_model.safetensors")
    kept = load_file(tmp_path / "checkpoints" / f"checkpoint-{run['steps']}" / "best_adapter.safetensors")
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(weight, kept[name]) for name, weight in adapter.items())
    assert any(not torch.equal(weight, last[name]) for name, weight in adapter.items())

    # A run that was killed before its adapter was written ends with the same one.
    shutil.rmtree(tmp_path / "adapter")
    train(settings, dataset, str(base), tmp_path / "adapter", tmp_path / "checkpoints")
    again = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(weight, again[name]) for name, weight in adapter.items())
    assert curve(tmp_path / "adapter") == dev


def test_accuracy_is_measured_on_the_models_own_answers(base: Path, dataset: Path, tmp_path: Path) -> None:
    trained_on = tmp_path / "dataset"
    shutil.copytree(dataset, trained_on)
    write_examples(trained_on / "dev.jsonl", [example(number, city) for number, city in enumerate(CITIES)])
    settings = SETTINGS.model_copy(
        update={"early_stopping": "accuracy", "evaluation_steps": 60, "max_steps": 120, "learning_rate": 1e-2}
    )
    train(settings, trained_on, str(base), tmp_path / "adapter", tmp_path / "checkpoints")
    dev = curve(tmp_path / "adapter")
    assert dev["measure"] == "accuracy" and dev["step"] == [60, 120]
    assert max(dev["value"]) >= 0.5  # so small a base memorizes these
    records = [json.loads(line) for line in (tmp_path / "adapter" / "progress.jsonl").read_text().splitlines()]
    measured = {record["step"]: record["dev_accuracy"] for record in records if "dev_accuracy" in record}
    assert measured == dict(zip(dev["step"], dev["value"], strict=True))
    # Whoever evaluates the adapter must know which questions chose it.
    run = json.loads((tmp_path / "adapter" / "run.json").read_bytes())
    asked = {one.id for one in read_examples(trained_on / "dev.jsonl")}
    questions = run["early_stopping"]["questions"]
    assert len(questions) == settings.evaluation_questions and asked >= set(questions)


def test_missing_dev_questions_are_refused_before_the_first_step(base: Path, dataset: Path, tmp_path: Path) -> None:
    without = tmp_path / "dataset"
    shutil.copytree(dataset, without)
    (without / "dev.jsonl").write_text("")
    settings = SETTINGS.model_copy(update={"early_stopping": "loss"})
    measured = dev_metric(settings, without, load_tokenizer(base))
    with pytest.raises(InputError, match=r"dev\.jsonl: contains no questions, which train\.early_stopping"), measured:
        pass


def test_missing_databases_are_refused_before_the_first_step(base: Path, dataset: Path, tmp_path: Path) -> None:
    without = tmp_path / "dataset"
    shutil.copytree(dataset, without)
    (without / "databases" / "hotel.sqlite").unlink()
    settings = SETTINGS.model_copy(update={"early_stopping": "accuracy"})
    measured = dev_metric(settings, without, load_tokenizer(base))
    with pytest.raises(InputError, match="database 'hotel' is missing"), measured:
        pass
