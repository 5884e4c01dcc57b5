"""Real runs on a base model whose weights are in 4 bits."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chatmetrics.components.errors import InputError
from chatmetrics.components.merge.merge import merge
from chatmetrics.components.merge.settings import MergeSettings
from chatmetrics.components.train.launch import train
from chatmetrics.components.train.model.base import load_model
from chatmetrics.components.train.model.device import DeviceSettings
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.train.small_dataset import write_dataset

STEPS = 12
SETTINGS = TrainSettings(
    quantize_base="nf4",
    gradient_checkpointing=True,
    max_steps=STEPS,
    checkpoint_steps=4,
    logging_steps=1,
    batch_size=4,
    gradient_accumulation=2,
    learning_rate=5e-3,
)


@dataclass(frozen=True)
class Run:
    base: Path
    dataset: Path
    checkpoints: Path
    adapter: Path


@pytest.fixture(scope="module")
def run(quick_launches: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("quantized")
    run = Run(tiny_base(folder / "base"), write_dataset(folder / "dataset"), folder / "checkpoints", folder / "adapter")
    train(SETTINGS, run.dataset, str(run.base), run.adapter, run.checkpoints)
    return run


def test_the_adapter_is_trained_in_fp32(run: Run) -> None:
    losses = [json.loads(line)["loss"] for line in (run.adapter / "progress.jsonl").read_text("utf-8").splitlines()]
    assert len(losses) == STEPS and losses[-1] < 0.8 * losses[0]
    assert {weight.dtype for weight in load_file(run.adapter / "adapter_model.safetensors").values()} == {torch.float32}


def test_the_adapter_is_merged_with_the_base_in_full_precision(run: Run, tmp_path: Path) -> None:
    report = merge(MergeSettings(), str(run.base), run.adapter, tmp_path / "merged")
    assert report.max_difference < report.tolerance
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_bytes())
    before, after = (load_file(folder / "model.safetensors") for folder in (run.base, tmp_path / "merged"))
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    change = max((after[name] - before[name]).abs().max() for name in before)
    assert 0 < change < 0.1  # by the adapter; the base's weights were never in 4 bits


def test_a_run_resumes_from_its_checkpoint(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoints = Path(shutil.copytree(run.checkpoints, tmp_path / "checkpoints"))
    shutil.rmtree(checkpoints / f"checkpoint-{STEPS}")
    train(SETTINGS, run.dataset, str(run.base), tmp_path / "adapter", checkpoints)
    assert f"resuming from {checkpoints / 'checkpoint-8'}" in capfd.readouterr().err
    expected, weights = (load_file(path / "adapter_model.safetensors") for path in (run.adapter, tmp_path / "adapter"))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_4_bit_weights_take_a_quarter_of_half_precision(run: Run) -> None:
    model = load_model(run.base, SETTINGS, on_cpu("bf16"))
    layers = [module for module in model.get_decoder().layers.modules() if isinstance(module, torch.nn.Linear)]
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}
    assert all(layer.weight.nbytes == layer.in_features * layer.out_features / 2 for layer in layers)
    assert model.get_output_embeddings().weight.dtype == model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_missing_bitsandbytes_is_an_input_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(InputError, match=r"quantize_base nf4 is not available .*; set train\.quantize_base to none"):
        load_model(run.base, SETTINGS, on_cpu("fp32"))


def on_cpu(precision: str) -> DeviceSettings:
    return DeviceSettings(has_gpu=False, precision=precision, attention="sdpa")
