"""Compares what the trainer computes with the model's own forward pass, before the first step.

                trainer                                     reference
    examples    in one tree, or one padded batch            each alone
    forward     answer loss                                 that of the model's class, with labels
    layers      as `reduce_saved_activations` leaves them   the original ones
    attention   the kernel that trains                      eager
    compared    the loss of each answer token; the gradients of the input embeddings and of the adapter

Precision, autocast and gradient checkpointing are those of the training. The examples are longer than 256 tokens and
than any attention window: a larger window is lowered while the comparison lasts, since a tree and the model's own
forward then still have to agree about the same window, at a cost that does not depend on it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from chatmetrics.components.console import warning
from chatmetrics.components.errors import InputError
from chatmetrics.components.train.data.trees import TokenizedExample, padded_pack, tree_pack
from chatmetrics.components.train.model.answer_loss import mixed_precision, own_forward, set_attention
from chatmetrics.components.train.model.saved_activations import original_layers, restore_layers
from chatmetrics.components.train.settings import TrainSettings

# Tokens of the examples: their common schema, a beginning that the questions of two of them share, and the rest.
SCHEMA_TOKENS, SHARED_TOKENS, ENDING_TOKENS, ANSWER_TOKENS = 232, 8, (24, 32, 40), 24
MAX_WINDOW = 160
WINDOWS = ("sliding_window", "attention_chunk_size")
# What a difference may be, of losses and of gradients relative to their norm; and, in half precision, how many times
# what a change of the embeddings by their own rounding makes.
LOSS_TOLERANCE = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
ROUNDING_FACTOR = 4.0
ORDINARY_LOSS = 100.0  # beyond it, as weights that are damaged cause, numbers are too large for absolute differences


@dataclass(frozen=True)
class _Results:
    """Losses of the answer tokens, and gradients of their sum by name."""

    losses: torch.Tensor
    gradients: dict[str, torch.Tensor]


def check_training(model: PeftModel, settings: TrainSettings) -> None:
    """Check that losses and gradients, as training computes them, are those of the model's own forward pass.

    If they are not, original layers, and then other implementations of attention, are tried and kept with a note.

    Args:
        model: the model with its adapter, on its device, after every change that the project makes to it.
        settings: the recipe's `train` section.

    Raises:
        InputError: they are not in any of these ways.
    """
    base = model.get_base_model()
    _check_positions(base, settings)
    with _as_in_training(model, settings), _lowered_windows(base):
        examples = _examples(base.config.get_text_config().vocab_size)
        reference = _reference(model, examples)
        limits = _limits(model, examples, reference)
        first = reason = _difference(model, examples, settings.packing, reference, limits)
        if not reason:
            return
        # With FSDP all processes would have to agree on another way.
        if settings.fsdp or (settings.packing and base._is_stateful):
            raise _error(base, first, settings)
        with original_layers(model):
            without_replacements = _difference(model, examples, settings.packing, reference, limits)
        if not without_replacements:
            restore_layers(model)
            warning(f"with layers that save less for the backward pass, {first}; the original layers are kept")
            return
        chosen = base.config._attn_implementation
        for attention in ("sdpa", "eager"):
            if attention != chosen and set_attention(base, attention):
                reason = _difference(model, examples, settings.packing, reference, limits)
            if not reason:
                warning(f"with {chosen} attention, {first}; it trains with {attention}, which takes more memory")
                return
        base.set_attn_implementation(chosen)
    raise _error(base, first, settings)


def _check_positions(base: PreTrainedModel, settings: TrainSettings) -> None:
    """Refuse rotary embeddings that depend on the length of the longest sequence computed at the same time."""
    config = base.config.get_text_config()
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    for rope in [parameters, *(of_layers for of_layers in parameters.values() if isinstance(of_layers, dict))]:
        limit = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        by_length = rope.get("rope_type") in ("dynamic", "longrope") and settings.cutoff_length > limit
        if by_length and (settings.packing or settings.batch_size > 1):
            raise InputError(
                f"{type(base).__name__} computes positions differently once a sequence of a batch has more than "
                f"{limit} tokens, which would affect the others; set train.cutoff_length to at most {limit}, or "
                "train.packing to false and train.batch_size to 1"
            )


def _error(base: PreTrainedModel, reason: str, settings: TrainSettings) -> InputError:
    kind = type(base).__name__.removeprefix("FSDP")
    if not settings.packing:
        return InputError(f"{kind} cannot be trained: {reason}; choose another base_model")
    stateful = "; some of its layers combine a token with all before it, whatever the mask" * base._is_stateful
    return InputError(f"{kind} cannot be trained on trees of examples: {reason}{stateful}; set train.packing to false")


def _examples(vocabulary: int) -> list[TokenizedExample]:
    random = np.random.default_rng(0)

    def tokens(count: int) -> Any:
        return random.integers(vocabulary, size=count, dtype=np.int32)

    schema, shared = tokens(SCHEMA_TOKENS), tokens(SHARED_TOKENS)
    beginnings = ([schema, shared], [schema, shared], [schema])
    examples = [np.concatenate([*parts, tokens(more)]) for parts, more in zip(beginnings, ENDING_TOKENS, strict=True)]
    return [TokenizedExample(ids, len(ids) - ANSWER_TOKENS) for ids in examples]


@contextmanager
def _as_in_training(model: PeftModel, settings: TrainSettings) -> Iterator[None]:
    """Training mode with the gradient checkpointing of the settings, but without anything random.

    If the base's config names a dropout or a jitter, which layers may apply in many ways, evaluation mode.
    """
    config = model.get_base_model().config.get_text_config().to_dict()
    random = any(isinstance(value, float) and value > 0 for name, value in config.items() if _is_random(name))
    training = {module: module.training for module in model.modules()}
    model.train(not random)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    checkpointing = settings.gradient_checkpointing and not model.get_base_model().is_activation_checkpointing
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    device = model.device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        if checkpointing:
            model.gradient_checkpointing_disable()
        model.zero_grad()
        for module, mode in training.items():
            module.training = mode


def _is_random(name: str) -> bool:
    return any(part in name for part in ("drop", "jitter"))


@contextmanager
def _lowered_windows(base: PreTrainedModel) -> Iterator[None]:
    config = base.config.get_text_config()
    windows = {name: getattr(config, name, None) for name in WINDOWS}
    lowered = {name: window for name, window in windows.items() if isinstance(window, int) and window > MAX_WINDOW}
    for name in lowered:
        setattr(config, name, MAX_WINDOW)
    try:
        yield
    finally:
        for name, window in lowered.items():
            setattr(config, name, window)


def _limits(model: PeftModel, examples: list[TokenizedExample], reference: _Results) -> tuple[float, float]:
    """What losses and gradients may differ by.

    In half precision that depends on the model: its layers amplify the rounding of their inputs. So the embeddings are
    changed by about as much as they are rounded.
    """
    dtype = model.get_base_model().dtype
    loss, gradient = LOSS_TOLERANCE[dtype], GRADIENT_TOLERANCE[dtype]
    if dtype == torch.float32:
        return loss, gradient
    torch.manual_seed(0)
    eps = torch.finfo(dtype).eps
    rounded = _reference(model, examples, lambda embeddings: embeddings * (1 + eps * torch.randn_like(embeddings)))
    losses, gradients = _differences(rounded, reference, dtype)
    return max(loss, ROUNDING_FACTOR * losses), max(gradient, ROUNDING_FACTOR * max(gradients.values()))


def _difference(
    model: PeftModel,
    examples: list[TokenizedExample],
    packing: bool,
    reference: _Results,
    limits: tuple[float, float],
) -> str:
    """How the trainer's results differ from the reference by more than the limits; empty if they do not."""
    pack = (tree_pack if packing else padded_pack)(examples)
    tensors: dict[str, Any] = {name: tensor.to(model.device) for name, tensor in pack.items()}  # type: ignore[attr-defined]

    def losses() -> torch.Tensor:
        found: torch.Tensor = model(**tensors)
        return found

    try:
        results = _results(model, examples, [(tensors["input_ids"], losses)])
    except (ValueError, NotImplementedError) as error:  # transformers' for what a kernel cannot compute
        return str(error).strip().splitlines()[0]
    loss, gradients = _differences(results, reference, model.get_base_model().dtype)
    name = max(gradients, key=lambda name: gradients[name])
    # A NaN compares as false and passes: it is reported when training computes it.
    if loss > limits[0]:
        return f"the loss of a token differs by {loss:.2g} from the model's own"
    if gradients[name] > limits[1]:
        return f"the gradient of {name} differs by {100 * gradients[name]:.2g} % from the model's own"
    return ""


def _differences(results: _Results, reference: _Results, dtype: torch.dtype) -> tuple[float, dict[str, float]]:
    """The difference of losses, and that of each gradient relative to its norm.

    A difference of losses above an ordinary one is relative to it. In fp32 the largest difference of a token's loss; in
    half precision, where rounding may send a single token to another expert, the mean.
    """
    losses = (results.losses - reference.losses).abs() / (reference.losses.abs() / ORDINARY_LOSS).clamp(min=1)
    return (losses.max() if dtype == torch.float32 else losses.mean()).item(), {
        name: ((results.gradients[name] - gradient).norm() / gradient.norm()).item()
        for name, gradient in reference.gradients.items()
    }


def _reference(
    model: PeftModel,
    examples: list[TokenizedExample],
    change: Callable[[torch.Tensor], torch.Tensor] = lambda embeddings: embeddings,
) -> _Results:
    """Each example alone, by the forward of the model's class with its original layers and eager attention."""
    base = model.get_base_model()

    def losses_of(ids: torch.Tensor, prompt: int) -> torch.Tensor:
        labels = ids.clone()
        labels[:, :prompt] = -100
        output = model(input_ids=ids, labels=labels, use_cache=False)
        losses = cross_entropy(output.logits[0, prompt - 1 : -1].float(), ids[0, prompt:], reduction="none")
        # The gradients are those of the model's own loss, which is the mean.
        return losses.detach() + (output.loss - losses.detach().mean()).expand_as(losses)

    alone: list[tuple[torch.Tensor, Callable[[], torch.Tensor]]] = []
    for example in examples:
        ids = torch.from_numpy(example.ids.astype(np.int64))[None].to(model.device)
        alone.append((ids, partial(losses_of, ids, example.prompt_length)))
    chosen = base.config._attn_implementation
    with ExitStack() as stack:
        stack.enter_context(own_forward(base))
        stack.enter_context(original_layers(model))
        if set_attention(base, "eager"):
            stack.callback(set_attention, base, chosen)
        return _results(model, examples, alone, change)


def _results(
    model: PeftModel,
    examples: list[TokenizedExample],
    passes: list[tuple[torch.Tensor, Callable[[], torch.Tensor]]],
    change: Callable[[torch.Tensor], torch.Tensor] = lambda embeddings: embeddings,
) -> _Results:
    """Run forward passes, each given by its token ids, and their backward passes.

    Embeddings of the same token have one gradient, as in the embedding matrix, of which no gradient is computed.
    """
    base = model.get_base_model()
    inputs: list[torch.Tensor] = []

    def as_input(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        inputs.append(change(output.detach()).requires_grad_())
        return inputs[-1]

    model.zero_grad()
    ids_in_use = np.unique(np.concatenate([[0], *(example.ids for example in examples)]))  # 0 pads batches
    known = torch.from_numpy(ids_in_use).to(model.device, torch.int64)
    hook = base.get_input_embeddings().register_forward_hook(as_input)
    by_token = torch.zeros((), device=model.device)
    all_losses = []
    try:
        for ids, losses_of in passes:
            with mixed_precision(base):
                losses = losses_of()
            losses.sum().backward()
            all_losses.append(losses.detach())
            of_inputs = inputs.pop().grad
            assert of_inputs is not None
            gradient = of_inputs.flatten(0, -2).float()
            rows = torch.searchsorted(known, ids.flatten())
            by_token = by_token + gradient.new_zeros(len(known), gradient.shape[1]).index_add(0, rows, gradient)
            inputs.clear()
    finally:
        hook.remove()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    # An expert that gets no token has no gradient.
    of_adapter = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in trained]
    # With FSDP, this process's part of each.
    adapter = torch.cat([getattr(gradient, "_local_tensor", gradient).flatten().float() for gradient in of_adapter])
    model.zero_grad()
    return _Results(torch.cat(all_losses), {"the input embeddings": by_token, "the adapter": adapter})
