"""What only GPUs compute in half precision, on a CPU."""

import json
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM

from chatmetrics.components.nl2sql.example import write_examples
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.components.train.data.tokenization import load_tokenizer
from chatmetrics.components.train.data.trees import tree_pack
from chatmetrics.components.train.fine_tune import fine_tune
from chatmetrics.components.train.job import TrainingJob
from chatmetrics.components.train.model import device
from chatmetrics.components.train.model.answer_loss import give_answer_loss
from chatmetrics.components.train.model.base import add_adapter
from chatmetrics.components.train.model.dev_questions import answers
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.train.small_dataset import CITIES, example, write_dataset
from tests.train.test_trees import random_examples

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_base_in_fp16_trains_with_a_gradient_scaler(gradient_checkpointing: bool, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path), dtype=torch.float16)
    give_answer_loss(base)
    model = add_adapter(base, TrainSettings()).train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    assert base.get_output_embeddings().weight.dtype == torch.float16
    optimizer, scaler = torch.optim.AdamW(trained, lr=1e-2), torch.amp.GradScaler("cpu", init_scale=2**10)
    pack, losses = tree_pack(random_examples(0)), []
    for _ in range(3):
        with torch.autocast("cpu", torch.float16):
            loss = model(**pack).mean()
        losses.append(loss.item())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # it raises if a gradient is in fp16
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert losses[2] < losses[0]
    assert scaler.get_scale() == 2**10  # no step was skipped


@pytest.fixture
def in_bf16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU that trains in bf16, and a training process that shares this process."""
    monkeypatch.setattr(device, "usable_precision", lambda settings: "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and a dataset with dev questions and their database."""
    folder = tmp_path_factory.mktemp("inputs")
    dataset = write_dataset(folder / "dataset")
    write_examples(dataset / "dev.jsonl", [example(number, city) for number, city in enumerate(CITIES)])
    (dataset / "databases").mkdir()
    with sqlite3.connect(dataset / "databases" / "hotel.sqlite") as database:
        database.execute("CREATE TABLE hotel (name TEXT, city TEXT)")
    (dataset / "dataset_card.json").write_text('{"databases": "databases"}')
    return tiny_base(folder / "base"), dataset


@pytest.mark.usefixtures("in_bf16")
@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": "accuracy"},
        {"early_stopping": "loss", "gradient_checkpointing": True},
        {"early_stopping": "accuracy", "lora_dropout": 0.1},
        {"early_stopping": "accuracy", "packing": False},
        {"early_stopping": "accuracy", "quantize_base": "nf4"},
    ],
    ids=str,
)
def test_a_whole_run_in_bf16(options: dict[str, Any], inputs: tuple[Path, Path], tmp_path: Path) -> None:
    base, dataset = inputs
    settings = TrainSettings.model_validate(
        {"max_steps": 4, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 5e-3, "logging_steps": 1}
        | {"evaluation_steps": 2, "evaluation_questions": 4, "checkpoint_steps": 2, **options}
    )
    job = TrainingJob(
        settings=settings,
        dataset=dataset,
        dataset_sha256="",
        base_model="base",
        base_fingerprint="",
        base_folder=base,
        output=tmp_path / "adapter",
        checkpoints=tmp_path / "checkpoints",
        ending=tmp_path / "ending.json",
    )
    job.checkpoints.mkdir()
    fine_tune(job)
    run = json.loads((job.output / "run.json").read_bytes())
    curve = json.loads((job.output / "loss.json").read_bytes())
    assert run["precision"] == "bf16" and run["steps"] == 4
    assert curve["dev"]["measure"] == options["early_stopping"] and curve["dev"]["step"] == [2, 4]
    losses = [json.loads(line)["loss"] for line in (job.output / "progress.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_answers_are_generated_in_half_precision(dtype: torch.dtype, inputs: tuple[Path, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(inputs[0], dtype=dtype)
    give_answer_loss(model)
    adapted = add_adapter(model, TrainSettings())
    questions = [example(number, city) for number, city in enumerate(CITIES[:3])]
    texts = answers(adapted, load_tokenizer(inputs[0]), DEEPSEEK3, questions, 5)
    assert len(texts) == 3
    assert "forward" in model.__dict__  # answer losses again
