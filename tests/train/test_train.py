"""Real runs through `accelerate launch` on a tiny model."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.nl2sql.example import write_examples
from chatmetrics.components.train.checkpoints.checksums import locked
from chatmetrics.components.train.launch import train
from chatmetrics.components.train.model.device import device_settings
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.train.small_dataset import example, write_dataset
from tests.waiting import wait_until

STEPS = 24
SETTINGS = TrainSettings(
    max_steps=STEPS,
    checkpoint_steps=4,
    logging_steps=1,
    batch_size=4,
    gradient_accumulation=2,
    learning_rate=2e-3,
    lora_dropout=0.1,
)
PROGRAM = """
import sys
from pathlib import Path
from chatmetrics.components.train.launch import train
from chatmetrics.components.train.settings import TrainSettings
settings, dataset, base, output, checkpoints = sys.argv[1:]
train(TrainSettings.model_validate_json(settings), Path(dataset), base, Path(output), Path(checkpoints))
"""


@dataclass(frozen=True)
class Inputs:
    base: Path
    dataset: Path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    return Inputs(tiny_base(folder / "base"), write_dataset(folder / "dataset"))


@pytest.fixture(scope="module")
def trained(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of an undisturbed run."""
    folder = tmp_path_factory.mktemp("trained")
    train(SETTINGS, inputs.dataset, str(inputs.base), folder / "adapter", folder / "checkpoints")
    return folder / "adapter"


def records(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def start_launcher(inputs: Inputs, folder: Path) -> subprocess.Popen[str]:
    arguments = [SETTINGS.model_dump_json(), inputs.dataset, inputs.base, folder / "adapter", folder / "checkpoints"]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def saved_steps(checkpoints: Path) -> list[int]:
    return [int(path.name.removeprefix("checkpoint-")) for path in checkpoints.glob("checkpoint-*")]


def is_free(checkpoints: Path) -> bool:
    try:
        with locked(checkpoints):
            return True
    except InputError:
        return False


def test_the_adapter_folder_contains_its_run_record(trained: Path, inputs: Inputs) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "trainer_state.json", "loss.json", "loss.png"}
    run = json.loads((trained / "run.json").read_bytes())
    assert run["steps"] == json.loads((trained / "trainer_state.json").read_bytes())["global_step"] == STEPS
    assert run["settings"] == SETTINGS.model_dump(mode="json")
    assert run["base_model"] == json.loads((trained / "adapter_config.json").read_bytes())["base_model_name_or_path"]
    progress = records(trained / "progress.jsonl")
    assert [record["step"] for record in progress] == list(range(1, STEPS + 1))
    assert progress[-1]["loss"] < 0.7 * progress[0]["loss"]
    assert progress[-1]["computed_tokens"] == run["computed_tokens"] < run["tokens"] == progress[-1]["tokens"]
    assert progress[-1]["of"] == STEPS


def test_every_linear_layer_but_the_head_has_an_adapter_in_fp32(trained: Path) -> None:
    weights = load_file(trained / "adapter_model.safetensors")
    adapted = {name.split(".")[-3] for name in weights}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(weight.shape[0] == 8 for name, weight in weights.items() if "lora_A" in name)


@pytest.mark.usefixtures("quick_launch")
def test_packing_computes_less_and_learns_the_same(inputs: Inputs, tmp_path: Path) -> None:
    runs = {}
    for packing in (True, False):
        folder = tmp_path / str(packing)
        settings = SETTINGS.model_copy(
            update={"packing": packing, "precision": "fp32", "lora_dropout": 0, "max_steps": 8}
        )
        train(settings, inputs.dataset, str(inputs.base), folder / "adapter", folder / "checkpoints")
        runs[packing] = records(folder / "adapter" / "progress.jsonl")
    packed, padded = runs[True], runs[False]
    assert [record["loss"] for record in packed] == pytest.approx([record["loss"] for record in padded], rel=1e-4)
    assert [record["tokens"] for record in packed] == [record["tokens"] for record in padded]
    assert 3 * packed[-1]["computed_tokens"] < packed[-1]["tokens"] <= padded[-1]["computed_tokens"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in bf16")
@pytest.mark.parametrize(
    ("capability", "trained_in"), [("avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("avx512_f", "fp32")]
)
def test_a_cpu_trains_in_bf16_if_it_multiplies_in_it(
    capability: str, trained_in: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True, "amx_tile": False})
    assert device_settings(TrainSettings(precision="bf16")).precision == trained_in
    assert ("cannot train in bf16, so it trains in fp32" in capsys.readouterr().err) == (trained_in == "fp32")
    assert device_settings(TrainSettings(precision="fp32")).precision == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in bf16")
def test_an_adapter_s_record_has_the_precision_that_was_used(trained: Path) -> None:
    assert json.loads((trained / "run.json").read_bytes())["precision"] == device_settings(SETTINGS).precision


def test_a_killed_and_stopped_run_ends_with_the_adapter_of_an_undisturbed_one(
    inputs: Inputs, trained: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "checkpoints"

    def sealed(step: int) -> bool:
        return (checkpoints / f"checkpoint-{step}" / "sealed.json").exists()

    killed = start_launcher(inputs, tmp_path)
    wait_until(lambda: sealed(8), 120, "the second checkpoint")
    killed.kill()
    killed.communicate()
    wait_until(lambda: is_free(checkpoints), 120, "the training process to end with its launcher")
    assert not (tmp_path / "adapter").exists()
    step = max(saved_steps(checkpoints))
    newest = checkpoints / f"checkpoint-{step}"
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-100])

    stopped = start_launcher(inputs, tmp_path)
    wait_until(lambda: sealed(step + 4), 120, "a checkpoint after resuming")
    stopped.send_signal(signal.SIGTERM)
    _, stderr = stopped.communicate()
    assert stopped.returncode == 128 + signal.SIGTERM
    assert f"{newest} is incomplete or damaged" in stderr and "resuming from" in stderr
    assert not (tmp_path / "adapter").exists() and is_free(checkpoints)
    assert max(saved_steps(checkpoints)) == records(checkpoints / "progress.jsonl")[-1]["step"]

    finished = start_launcher(inputs, tmp_path)
    _, stderr = finished.communicate()
    assert finished.returncode == 0, stderr
    assert "resuming from" in stderr
    expected, weights = (load_file(path / "adapter_model.safetensors") for path in (trained, tmp_path / "adapter"))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    undisturbed, disturbed = records(trained / "progress.jsonl"), records(tmp_path / "adapter" / "progress.jsonl")
    for name in ("step", "loss", "learning_rate", "tokens", "computed_tokens"):
        assert [record[name] for record in disturbed] == [record[name] for record in undisturbed]


@pytest.mark.usefixtures("quick_launch")
def test_a_nan_loss_stops_training_and_keeps_the_old_adapter(inputs: Inputs, trained: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(inputs.base, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    adapter = Path(shutil.copytree(trained, tmp_path / "adapter"))
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    with pytest.raises(InputError, match="the loss is nan at step 1 ") as caught:
        train(SETTINGS, inputs.dataset, str(base), adapter, tmp_path / "checkpoints")
    assert "not finite for 8 of its 8 examples: q" in str(caught.value)
    assert "the last good checkpoint is none yet" in str(caught.value)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "checkpoints"]


@pytest.mark.usefixtures("quick_launch")
@pytest.mark.parametrize("adapters", [0.5, 1.5])  # the adapter's file fails, or the optimizer's
def test_a_full_disk_is_a_one_line_error_and_keeps_the_old_adapter(
    inputs: Inputs, trained: Path, tmp_path: Path, adapters: float
) -> None:
    adapter = Path(shutil.copytree(trained, tmp_path / "adapter"))
    size = (adapter / "adapter_model.safetensors").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(adapters * size), hard))  # writes fail as on a full disk
    try:
        with pytest.raises(StorageError) as caught:
            train(SETTINGS, inputs.dataset, str(inputs.base), adapter, tmp_path / "checkpoints")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path / "checkpoints") in str(caught.value) and "\n" not in str(caught.value)
    assert (adapter / "adapter_model.safetensors").stat().st_size == size


@pytest.mark.usefixtures("quick_launch")
def test_an_example_over_the_cutoff_is_named_by_the_launcher(inputs: Inputs, tmp_path: Path) -> None:
    write_examples(tmp_path / "train.jsonl", [example(1, "Oslo"), example(2, "Lima " * 400)])
    with pytest.raises(InputError, match=r"example q2: \d+ tokens are more than cutoff_length 512"):
        train(
            TrainSettings(cutoff_length=512), tmp_path, str(inputs.base), tmp_path / "adapter", tmp_path / "checkpoints"
        )


def test_missing_inputs_are_named_before_anything_is_started(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/train\.jsonl"):
        train(SETTINGS, tmp_path / "nowhere", str(inputs.base), tmp_path / "adapter", tmp_path / "checkpoints")
    with pytest.raises(InputError, match=str(tmp_path)):
        train(SETTINGS, inputs.dataset, f"{tmp_path}/no-base", tmp_path / "adapter", tmp_path / "checkpoints")


def test_checkpoints_of_another_run_are_refused(inputs: Inputs, trained: Path, tmp_path: Path) -> None:
    checkpoints = trained.parent / "checkpoints"
    other = SETTINGS.model_copy(update={"learning_rate": 1e-5})
    with pytest.raises(InputError, match="another learning_rate"):
        train(other, inputs.dataset, str(inputs.base), tmp_path / "adapter", checkpoints)
    more = SETTINGS.model_copy(update={"gradient_accumulation": 4})
    with pytest.raises(InputError, match="another examples_per_step"):
        train(more, inputs.dataset, str(inputs.base), tmp_path / "adapter", checkpoints)
    assert not (tmp_path / "adapter").exists()


def test_the_defaults_are_the_published_settings() -> None:
    settings = TrainSettings()
    assert (settings.learning_rate, settings.epochs, settings.cutoff_length) == (5e-5, 10, 2048)
    assert (settings.batch_size, settings.gradient_accumulation, settings.precision) == (2, 8, "bf16")
    assert (settings.lora_rank, settings.lora_targets, settings.checkpoint_steps) == (8, "all-linear", 100)
    assert settings.logging_steps == 5
