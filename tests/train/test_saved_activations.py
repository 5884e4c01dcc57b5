"""A model that saves fewer activations for its backward pass computes the same bits."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from chatmetrics.components.train.data.trees import Pack, tree_pack
from chatmetrics.components.train.model.answer_loss import give_answer_loss
from chatmetrics.components.train.model.base import lora_config
from chatmetrics.components.train.model.saved_activations import reduce_saved_activations
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
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
