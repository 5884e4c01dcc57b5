"""Losses and gradients computed in a tree equal those of each example alone, for any tree."""

import re
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.data.trees import (
    Pack,
    TokenizedExample,
    balanced_parts,
    cheapest_parts,
    padded_pack,
    shared_prefix_length,
    tree_pack,
)
from chatmetrics.components.train.model import answer_loss
from chatmetrics.components.train.model.answer_loss import give_answer_loss, tree_mask
from chatmetrics.components.train.model.base import add_adapter
from chatmetrics.components.train.model.device import attention_implementation
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

RELATIVE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def base(folder: Path, attention: str = "sdpa") -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    give_answer_loss(model)
    return model


@pytest.fixture(scope="module")
def adapted(folder: Path) -> PeftModel:
    model = get_peft_model(base(folder), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # initially zero, and with it all gradients of lora_A
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def random_examples(seed: int, count: int = 12) -> list[TokenizedExample]:
    """Two schemas with two beginnings of questions each, and endings of two letters, so that they fork anywhere.

    One example occurs twice, and the ids of one are a prefix of another's.
    """
    random = np.random.default_rng(seed)

    def text(most: int, letters: int = 400) -> list[int]:
        return [int(token) for token in random.integers(letters, size=random.integers(1, most))]

    beginnings = [[*schema, *question] for schema in (text(60), text(9)) for question in (text(5), text(5))]
    examples = []
    for number in range(count - 2):
        prompt, answer = [*beginnings[number % 4], *text(8, letters=2)], text(20, letters=2)
        examples.append(TokenizedExample(np.array([*prompt, *answer], dtype=np.int32), len(prompt)))
    longer = np.append(examples[0].ids, np.int32(5))
    return [*examples, examples[1], TokenizedExample(longer, examples[0].prompt_length)]


def losses_and_gradients(model: PeftModel, packs: Sequence[Pack]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Losses of the answer tokens of each pack, and the gradients of their mean, accumulated over all packs."""
    model.zero_grad()
    tokens = sum(len(pack["targets"]) for pack in packs)
    losses = []
    for pack in packs:
        loss = model(**pack)
        (loss.sum() / tokens).backward()
        losses.append(loss.detach())
    return losses, {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}


def assert_exact(model: PeftModel, examples: list[TokenizedExample], parts: list[list[TokenizedExample]]) -> None:
    """Assert that examples in trees of these parts have the losses and gradients that each has alone."""
    in_parts = [example for part in parts for example in part]
    assert sorted(map(id, in_parts)) == sorted(map(id, examples))
    expected, gradients = losses_and_gradients(model, [padded_pack([example]) for example in in_parts])
    in_trees, tree_gradients = losses_and_gradients(model, [tree_pack(part) for part in parts])
    answers = [len(example.ids) - example.prompt_length for example in in_parts]
    for loss, alone in zip(torch.cat(in_trees).split(answers), expected, strict=True):
        torch.testing.assert_close(loss.mean(), alone.mean(), rtol=RELATIVE, atol=0)
    for name, gradient in gradients.items():
        assert (tree_gradients[name] - gradient).norm() <= RELATIVE * gradient.norm(), name


@pytest.mark.parametrize("seed", range(8))
def test_losses_and_gradients_equal_those_of_each_example_alone(adapted: PeftModel, seed: int) -> None:
    examples = random_examples(seed)
    assert_exact(adapted, examples, [examples])


@pytest.mark.parametrize("seed", range(4))
def test_they_are_equal_with_accumulation_and_gradient_checkpointing(adapted: PeftModel, seed: int) -> None:
    examples = random_examples(seed)
    parts = cheapest_parts(examples, 60, float)
    assert len(parts) > 2
    adapted.train()
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        assert_exact(adapted, examples, parts)
    finally:
        adapted.gradient_checkpointing_disable()


@pytest.mark.parametrize("seed", range(2))
def test_padded_packs_are_exact_too(adapted: PeftModel, seed: int) -> None:
    examples = random_examples(seed)
    expected, gradients = losses_and_gradients(adapted, [padded_pack([example]) for example in examples])
    together, row_gradients = losses_and_gradients(adapted, [padded_pack(examples[:7]), padded_pack(examples[7:])])
    torch.testing.assert_close(torch.cat(together), torch.cat(expected), rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        assert (row_gradients[name] - gradient).norm() <= RELATIVE * gradient.norm(), name


@pytest.mark.parametrize("seed", range(8))
def test_a_token_sees_its_own_example_and_nothing_else(seed: int) -> None:
    examples = random_examples(seed)
    pack = tree_pack(examples)
    mask = tree_mask(pack["ends"], "sdpa", torch.float32)[0, 0]
    ids, positions = pack["input_ids"][0], pack["position_ids"][0]
    answers = pack["sources"].split([len(example.ids) - example.prompt_length for example in examples])
    for example, sources in zip(examples, answers, strict=True):
        for place, source in enumerate(sources):
            seen = (mask[source] == 0).nonzero().flatten()
            assert ids[seen].tolist() == example.ids[: example.prompt_length + place].tolist()
            assert positions[seen].tolist() == list(range(example.prompt_length + place))


@pytest.mark.parametrize("seed", range(8))
def test_no_token_is_in_a_tree_twice(seed: int) -> None:
    examples = random_examples(seed)
    beginnings = {tuple(example.ids[: end + 1]) for example in examples for end in range(len(example.ids))}
    assert tree_pack(examples)["input_ids"].shape == (1, len(beginnings))


def tree_size(part: Sequence[TokenizedExample]) -> int:
    return tree_pack(part)["input_ids"].numel()


def divisions(examples: list[TokenizedExample]) -> list[list[list[TokenizedExample]]]:
    """All ways to split the sorted examples into parts."""
    ordered = sorted(examples, key=lambda example: example.ids.tolist())
    ways = []
    for cuts in product([False, True], repeat=len(ordered) - 1):
        places = [0, *(place for place, cut in enumerate(cuts, start=1) if cut), len(ordered)]
        ways.append([ordered[start:end] for start, end in pairwise(places)])
    return ways


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_balanced_part_is_as_small_as_possible(seed: int) -> None:
    examples = random_examples(seed, 8)
    for parts in (1, 2, 3, 8):
        best = min(max(map(tree_size, way)) for way in divisions(examples) if len(way) <= parts)
        found = balanced_parts(examples, parts)
        assert len(found) <= parts and max(map(tree_size, found)) == best


@pytest.mark.parametrize("seed", range(3))
def test_cheapest_parts_cost_the_least_within_their_size(seed: int) -> None:
    examples = random_examples(seed, 8)
    most = 2 * max(len(example.ids) for example in examples)

    def cost(tokens: int) -> float:
        return 5 + tokens * (1 + tokens / 50)

    def total(parts: list[list[TokenizedExample]]) -> float:
        return sum(cost(tree_size(part)) for part in parts)

    allowed = [way for way in divisions(examples) if max(map(tree_size, way)) <= most]
    found = cheapest_parts(examples, most, cost)
    assert max(map(tree_size, found)) <= most
    assert total(found) == pytest.approx(min(map(total, allowed)))


def test_an_example_longer_than_a_pack_is_a_part_of_its_own() -> None:
    examples = random_examples(0)
    parts = cheapest_parts(examples, 1, float)
    assert [len(part) for part in parts] == [1] * len(examples)


def test_shared_prefix_length() -> None:
    def ids(text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    assert [
        shared_prefix_length(ids(a), ids(b))
        for a, b in (("ab", "ab"), ("ab", "abc"), ("ab", "cb"), ("", "a"), ("abc", "abd"))
    ] == [
        2,
        2,
        0,
        0,
        2,
    ]


def test_the_head_computes_only_answer_tokens_gradients_in_pieces(
    adapted: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = random_examples(0)
    expected, gradients = losses_and_gradients(adapted, [tree_pack(examples)])
    monkeypatch.setattr(answer_loss, "LOGITS_AT_ONCE", 400 * 8)
    sizes = []
    hook = adapted.get_output_embeddings().register_forward_hook(lambda *call: sizes.append(len(call[2])))
    losses, gradients_in_pieces = losses_and_gradients(adapted, [tree_pack(examples)])
    hook.remove()
    assert max(sizes) <= 8
    assert sum(sizes) == 2 * len(losses[0])  # forward, and again backward
    torch.testing.assert_close(losses[0], expected[0], rtol=RELATIVE, atol=1e-6)
    for name, gradient in gradients.items():
        assert (gradients_in_pieces[name] - gradient).norm() <= RELATIVE * gradient.norm(), name


def test_flex_attention_with_its_block_mask_equals_sdpa(folder: Path) -> None:
    examples = random_examples(0)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # on a CPU it has no backward pass
        flex, sdpa = (base(folder, attention)(**tree_pack(examples)) for attention in ("flex_attention", "sdpa"))
    torch.testing.assert_close(flex, sdpa, rtol=1e-4, atol=1e-5)


def test_an_attention_that_would_ignore_the_mask_is_refused() -> None:
    with pytest.raises(InputError, match="flash_attention_2 ignores the mask"):
        attention_implementation(TrainSettings(attention="flash_attention_2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have it")
@pytest.mark.parametrize(
    "settings", [{"attention": "flash_attention_2", "packing": False}, {"attention": "flex_attention"}]
)
def test_an_attention_that_is_not_available_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="is not available"):
        attention_implementation(TrainSettings.model_validate(settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_model_that_computes_trees_exactly_passes_the_check(
    folder: Path, dtype: torch.dtype, gradient_checkpointing: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    model = add_adapter(base(folder).to(dtype), TrainSettings(gradient_checkpointing=gradient_checkpointing))
    assert not re.search("note: |warning: ", capfd.readouterr().err)
    assert not model.is_activation_checkpointing
    assert all(weight.grad is None for weight in model.parameters())


def test_flex_attention_passes_the_check_forward_and_backward(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # On a CPU torch refuses the backward pass of the compiled kernel; here nothing is compiled.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    with torch.compiler.set_stance("force_eager"):
        model = add_adapter(base(folder, "flex_attention"), TrainSettings())
    assert model.config._attn_implementation == "flex_attention"
    assert not re.search("note: |warning: ", capfd.readouterr().err)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_attention_kernel_that_ignores_the_mask_is_replaced(
    folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    attend = AttentionInterface()["sdpa"]

    def attend_without_mask(module: torch.nn.Module, *args: torch.Tensor, **kwargs: object) -> object:
        return attend(module, *args[:3], None, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", attend_without_mask)
    model = add_adapter(base(folder).to(dtype), TrainSettings())
    assert model.config._attn_implementation == "eager"
    assert "warning: with sdpa attention, the loss of a token differs by " in capfd.readouterr().err


def test_a_model_that_ignores_the_positions_is_refused(folder: Path) -> None:
    model = base(folder)
    decoder = model.get_decoder()
    forward = decoder.forward
    decoder.forward = lambda position_ids=None, **kwargs: forward(**kwargs)
    with pytest.raises(InputError, match=r"Qwen2ForCausalLM cannot be trained on trees .* set train\.packing to false"):
        add_adapter(model, TrainSettings())
