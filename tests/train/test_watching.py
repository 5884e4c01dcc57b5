"""Real runs that go wrong, and what is reported about them."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import write_examples
from chatmetrics.components.train.launch import train
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.train.simulated_pods import LIMITS, ForkServer, StartPod, pod_starter
from tests.train.small_dataset import example, write_dataset

SETTINGS = TrainSettings(
    max_steps=12, checkpoint_steps=1, logging_steps=1, batch_size=4, gradient_accumulation=2, learning_rate=2e-3
)
CITIES = ("Paris", "Rome", "Oslo", "Lima")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def start(fork_server: ForkServer, base: Path, tmp_path_factory: pytest.TempPathFactory) -> StartPod:
    folder = tmp_path_factory.mktemp("pods")
    return pod_starter(fork_server, folder, base, write_dataset(folder / "dataset"))


def damaged_copy(base: Path, folder: Path, damage: Callable[[dict[str, torch.Tensor]], None]) -> str:
    """A copy of the base with other weights."""
    shutil.copytree(base, folder)
    weights = load_file(base / "model.safetensors")
    damage(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(("processes", "fsdp"), [(1, False), (2, False), (2, True)])
def test_the_example_with_a_nan_loss_is_named_with_the_last_good_checkpoint(
    start: StartPod, base: Path, tmp_path: Path, processes: int, fsdp: bool
) -> None:
    examples = [example(number, city) for number, city in enumerate(CITIES * 10)]
    examples[23] = example(23, "Zürich")
    write_examples(tmp_path / "train.jsonl", examples)
    [letter, *_] = Tokenizer.from_file(str(base / "tokenizer.json")).encode("Zürich", add_special_tokens=False).ids

    def damage(weights: dict[str, torch.Tensor]) -> None:
        weights["model.embed_tokens.weight"][letter] = float("nan")

    inputs = {"base": damaged_copy(base, tmp_path / "base", damage), "dataset": str(tmp_path)}
    settings = SETTINGS.model_copy(
        update={"processes": processes, "fsdp": fsdp, "batch_size": 4 // processes, "seed": 1}
    )
    pod = start(settings, str(tmp_path / "checkpoints"), **inputs)
    assert pod.exit_status() == 1
    step = pod.last_step() + 1
    assert step > 1  # there is a checkpoint
    [message] = {line for line in pod.log().splitlines() if "InputError: the loss is nan" in line}
    assert f"at step {step} (not finite for 1 of its 8 examples: q23)" in message
    assert f"the last good checkpoint is {tmp_path}/checkpoints/checkpoint-{step - 1};" in message


def test_infinite_gradients_stop_training_although_the_loss_is_finite(
    start: StartPod, base: Path, tmp_path: Path
) -> None:
    def damage(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] *= 1e30  # so that the squares of the gradients are infinite

    settings = SETTINGS.model_copy(update={"packing": False})
    pod = start(settings, str(tmp_path / "checkpoints"), base=damaged_copy(base, tmp_path / "base", damage))
    assert pod.exit_status() == 1
    assert "InputError: the norm of the gradients is" in pod.log()
    assert "at step 1 (examples q" in pod.log() and "the last good checkpoint is none yet" in pod.log()


def test_a_learning_rate_too_high_or_too_low_causes_a_warning_in_log_and_record(
    start: StartPod, tmp_path: Path
) -> None:
    longer = {"max_steps": 90, "checkpoint_steps": 90}
    high = start(
        SETTINGS.model_copy(update={**longer, "learning_rate": 0.1, "warmup_steps": 60}), str(tmp_path / "high")
    )
    assert high.exit_status() == 0
    low = start(SETTINGS.model_copy(update={**longer, "learning_rate": 1e-9}), str(tmp_path / "low"))
    assert low.exit_status() == 0
    for pod, warned in ((high, "the loss diverges: "), (low, "the loss does not move: ")):
        [warning] = json.loads((pod.folder / "adapter" / "run.json").read_bytes())["warnings"]
        assert warning.startswith(warned)
        assert pod.log().count(warned) == 1


@pytest.mark.usefixtures("quick_launch")
def test_a_step_out_of_memory_is_a_one_line_error_with_the_estimate(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(tmp_path / "dataset", copies=1000)
    settings = SETTINGS.model_copy(update={"packing": False, "batch_size": 8000, "gradient_accumulation": 1})
    monkeypatch.setitem(LIMITS, "RLIMIT_AS", (6 * 2**30, resource.RLIM_INFINITY))
    with pytest.raises(InputError) as caught:
        train(settings, dataset, str(base), tmp_path / "adapter", tmp_path / "checkpoints")
    message = str(caught.value)
    assert message.startswith("out of memory at step 1, with a pack of ") and "tokens of 8000 examples" in message
    assert "the estimate was " in message and "\n" not in message
