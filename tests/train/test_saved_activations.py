"""A model that keeps less for its backward pass computes the same bits."""

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


def kept_and_learnt(model: PeftModel, pack: Pack) -> tuple[int, list[torch.Tensor]]:
    """Bytes that the backward pass keeps, then losses and gradients."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(2)  # of dropout
    mixed = model.dtype != torch.float32
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", model.dtype if mixed else torch.bfloat16, enabled=mixed),
    ):
        losses = model(**pack)
    size = sum(kept.values())
    losses.mean().backward()
    return size, [losses.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_keeps_less_and_changes_no_bit(base: Path, pack: Pack, dtype: torch.dtype, dropout: float) -> None:
    whole, lean = (adapted(base, dtype, dropout).train() for _ in "ab")
    reduce_saved_activations(lean)
    kept, learnt = kept_and_learnt(whole, pack)
    kept_less, learnt_too = kept_and_learnt(lean, pack)
    assert kept_less < kept
    assert len(learnt) == len(learnt_too) > 1
    assert all(torch.equal(one, other) for one, other in zip(learnt, learnt_too, strict=True))
