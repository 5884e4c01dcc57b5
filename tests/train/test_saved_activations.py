"""A model that saves fewer activations for its backward pass computes the same bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from chatmetrics.components.train.data.trees import Pack, tree_pack
from chatmetrics.components.train.model.answer_loss import give_answer_loss
from chatmetrics.components.train.model.base import lora_config
from chatmetrics.components.train.model.saved_activations import (
    original_layers,
    reduce_saved_activations,
    restore_layers,
)
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.train.test_model_families import EXACT, REFUSED, model_of
from tests.train.test_trees import random_examples


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pack() -> Pack:
    return tree_pack(random_examples(0))


def adapted(base: Path, dtype: torch.dtype, dropout: float) -> PeftModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    give_answer_loss(model)
    peft_model = get_peft_model(model, lora_config(TrainSettings(lora_dropout=dropout)))
    random = torch.Generator().manual_seed(1)
    for weight in peft_model.parameters():
        if weight.requires_grad:
            weight.data = 0.1 * torch.randn(weight.shape, generator=random)
    return peft_model


def saved_bytes_and_results(model: PeftModel, pack: Pack) -> tuple[int, list[torch.Tensor]]:
    """Bytes saved for the backward pass; losses and gradients."""
    saved: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(2)  # for dropout
    mixed = model.dtype != torch.float32
    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", model.dtype if mixed else torch.bfloat16, enabled=mixed),
    ):
        losses = model(**pack)
    size = sum(saved.values())
    losses.mean().backward()
    return size, [losses.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fewer_activations_are_saved_and_no_bit_changes(
    base: Path, pack: Pack, dtype: torch.dtype, dropout: float
) -> None:
    original, reduced = (adapted(base, dtype, dropout).train() for _ in "ab")
    reduce_saved_activations(reduced)
    size, results = saved_bytes_and_results(original, pack)
    reduced_size, reduced_results = saved_bytes_and_results(reduced, pack)
    assert reduced_size < size
    assert len(results) == len(reduced_results) > 1
    assert all(torch.equal(one, other) for one, other in zip(results, reduced_results, strict=True))


def plus(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return module.down_proj(module.act_fn(module.gate_proj(hidden)) * (module.up_proj(hidden) + 1))


def scaled(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return 1.01 * module.down_proj(module.act_fn(module.gate_proj(hidden)) * module.up_proj(hidden))


def gate_scaled(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return module.down_proj(module.act_fn(0.9 * module.gate_proj(hidden)) * module.up_proj(hidden))


def normed(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    product = module.act_fn(module.gate_proj(hidden)) * module.up_proj(hidden)
    return module.down_proj(torch.nn.functional.rms_norm(product, product.shape[-1:]))


def clamped(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    gate, up = module.gate_proj(hidden).clamp(max=40), module.up_proj(hidden).clamp(-40, 40)
    return module.down_proj(module.act_fn(gate) * up)


def dropped(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    product = module.act_fn(module.gate_proj(hidden)) * module.up_proj(hidden)
    return module.down_proj(torch.nn.functional.dropout(product, 0.1, module.training))


def other_gradient(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The same output, from an input that has no gradient of its own."""
    return module.down_proj(module.act_fn(module.gate_proj(hidden.detach())) * module.up_proj(hidden))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("forward", [plus, scaled, gate_scaled, normed, clamped, dropped, other_gradient])
def test_a_layer_that_computes_anything_else_is_kept(
    base: Path,
    forward: Callable[..., torch.Tensor],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Qwen2MLP, "forward", lambda self, hidden: forward(self, hidden))
    model = adapted(base, dtype, 0.0)
    reduce_saved_activations(model)
    layers = [module for module in model.modules() if isinstance(module, Qwen2MLP)]
    assert layers and not any("forward" in layer.__dict__ for layer in layers)
    assert capfd.readouterr().err.count("note: Qwen2MLP computes more than silu(gate) * up") == 1


@pytest.mark.parametrize("name", ["Falcon-H1", "BitNet", "DeepSeek-V4"])
def test_families_whose_layers_do_more_keep_them(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    family = {**EXACT, **REFUSED}[name]
    config = lora_config(TrainSettings(lora_targets=("gate_proj", "up_proj", "down_proj")))
    model = get_peft_model(model_of(family), config)
    reduce_saved_activations(model)
    assert not any("forward" in module.__dict__ for module in model.modules() if hasattr(module, "gate_proj"))
    assert "MLP computes more than silu(gate) * up" in capfd.readouterr().err


def test_original_layers_are_restored(base: Path) -> None:
    model = adapted(base, torch.float32, 0.0)

    def state() -> list[bool]:
        gated = ["forward" in module.__dict__ for module in model.modules() if isinstance(module, Qwen2MLP)]
        return gated + [not module.cast_input_dtype_enabled for module in model.modules() if is_adapter(module)]

    assert not any(state())
    reduce_saved_activations(model)
    assert all(state())
    with original_layers(model):
        assert not any(state())
    assert all(state())
    restore_layers(model)
    assert not any(state())


def is_adapter(module: torch.nn.Module) -> bool:
    return isinstance(module, LoraLayer)
