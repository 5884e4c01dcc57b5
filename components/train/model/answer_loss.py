"""The loss of answer tokens, for padded rows and trees, without computing the logits of any other token.

prompt            answer
t0  t1  t2  t3    t4  t5  EOS
            |     |   |
            v     v   v            sources: hidden states that predict answer tokens (here 3, 4, 5)
            t4    t5  EOS          targets

decoder:   all tokens              -> hidden states
own head:  only `sources`          -> logits, at most 128 MiB of them at once:

    sources  [ piece 0 | piece 1 | piece 2 ]      each piece's logits are computed, reduced to losses and freed,
                  |         |         |           and computed again in the backward pass
    losses   [ ------- | ------- | ------- ]

Masks and logits are the model's own, whatever its family. The layers' masks are those that its decoder asks for, made
for the tree by `tree_mask`. The logits are those that its own forward computes behind a decoder that returns a piece's
hidden states, so that they are scaled, capped or shifted as that family does it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import BaseModelOutput

from chatmetrics.components.train.estimate.memory import LOGITS_AT_ONCE

MASK_ALIGNMENT = 16

# Whether a token at one position may see a token at another, as transformers' mask functions say it: row, head, query,
# key.
Sees = Callable[[Any, Any, Any, Any], Any]


def give_answer_loss(model: PreTrainedModel) -> None:
    """Make the model's forward take a `Pack` and return the loss of each of its answer tokens, in fp32.

    The forward itself is replaced, so that adapters, DDP and mixed precision, which wrap it, work as usual.
    """
    model.forward = MethodType(_answer_losses, model)


@contextmanager
def own_forward(model: PreTrainedModel) -> Iterator[None]:
    """Give a model prepared by `give_answer_loss` the forward of its class again while the block lasts."""
    answer_loss_forward = model.__dict__.pop("forward")
    try:
        yield
    finally:
        model.forward = answer_loss_forward


def set_attention(base: PreTrainedModel, attention: str) -> bool:
    """Set an implementation of attention if the model supports it; return whether it does."""
    try:
        base.set_attn_implementation(attention)
    except ValueError:
        return False
    return bool(base.config._attn_implementation == attention)


def mixed_precision(model: PreTrainedModel) -> AbstractContextManager[None]:
    """The autocast that training in the precision of this model's weights uses; none for fp32."""
    dtype = model.dtype
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(model.device.type, dtype if half else torch.bfloat16, enabled=half)


def _answer_losses(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    sources: torch.Tensor,
    targets: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    ends: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    decoder = _decoder(model)
    if ends is None or position_ids is None:
        output = decoder(input_ids=input_ids, use_cache=False)
    else:
        with _tree_masks(decoder.config._attn_implementation, ends, position_ids):
            # Without a mask transformers would take positions that do not increase by one for several sequences.
            everything = torch.ones_like(input_ids)
            output = decoder(input_ids=input_ids, position_ids=position_ids, attention_mask=everything, use_cache=False)
    hidden = output.last_hidden_state.flatten(0, 1).index_select(0, sources)
    return _token_losses(model, hidden, targets, replace(output, last_hidden_state=None))


@contextmanager
def _tree_masks(attention: str, ends: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """Make the masks that a decoder asks transformers for, full or sliding, those of a tree while the block lasts."""

    def mask(*_: Any, mask_function: Sees, dtype: torch.dtype = torch.float32, **__: Any) -> Any:
        return tree_mask(ends, attention, dtype, positions, mask_function)

    ALL_MASK_ATTENTION_FUNCTIONS[attention] = mask
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS[attention]


def tree_mask(
    ends: torch.Tensor,
    attention: str,
    dtype: torch.dtype,
    positions: torch.Tensor | None = None,
    may_see: Sees | None = None,
) -> Any:
    """The attention mask of a tree: a token sees the tokens whose subtree it is in (see trees.py).

    FlexAttention gets a block mask. Other implementations get a dense mask of 0 and -inf in `dtype`: from booleans each
    layer would make such a mask again and save it for the backward pass.

    Args:
        ends: of one tree, shape (1, columns).
        attention: name of the attention implementation.
        dtype: of a dense mask.
        positions: each token's position in its own example, shape (1, columns).
        may_see: restricts what a token sees by the positions of both, for example to a sliding window.
    """
    length = ends.shape[1]
    if attention == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(row: Any, head: Any, query: Any, key: Any) -> Any:
            ancestor = (key <= query) & (query < ends[row, key])
            if may_see is None or positions is None:
                return ancestor
            return ancestor & may_see(row, head, positions[row, query], positions[row, key])

        return create_block_mask(sees, ends.shape[0], None, length, length, device=str(ends.device))
    columns = torch.arange(length, device=ends.device)
    queries = columns[:, None]
    unseen = (columns > queries) | (queries >= ends[:, None, None, :])
    if may_see is not None and positions is not None:
        zero = torch.zeros_like(ends[:1, :1, None, None])
        unseen = unseen | ~may_see(zero, zero, positions[:, None, :, None], positions[:, None, None, :])
    # One of the GPU kernels copies masks whose rows do not start at multiples of MASK_ALIGNMENT.
    aligned = -(-length // MASK_ALIGNMENT) * MASK_ALIGNMENT
    mask = torch.zeros((*unseen.shape[:-1], aligned), dtype=dtype, device=ends.device)[..., :length]
    return mask.masked_fill_(unseen, float("-inf"))


def _token_losses(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor, output: BaseModelOutput
) -> torch.Tensor:
    """Cross-entropy of each token, in pieces whose logits fit in 128 MiB; see the module's picture.

    Args:
        model: the model whose forward computes the logits.
        hidden: the decoder's hidden states of `sources`.
        targets: the tokens to predict.
        output: the decoder's output without hidden states.
    """
    head = model.get_output_embeddings()
    # FSDP gathers a sharded head for each call, and all processes must call it equally often: one piece.
    at_once = len(hidden) if isinstance(head, FSDPModule) else max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    pieces = list(zip(hidden.split(at_once), targets.split(at_once), strict=True))

    def losses(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(_own_logits(model, hidden, output).float(), targets, reduction="none")

    if len(pieces) == 1:
        return losses(hidden, targets)
    return torch.cat([checkpoint(losses, *piece, use_reentrant=False) for piece in pieces])


def _own_logits(model: PreTrainedModel, hidden: torch.Tensor, output: BaseModelOutput) -> torch.Tensor:
    """The logits that the forward of the model's class computes from these hidden states, as rows of one token."""
    rows = hidden[:, None]
    with _decoder_returning(model, replace(output, last_hidden_state=rows)):
        logits: torch.Tensor = type(model).forward(model, inputs_embeds=rows, use_cache=False).logits
    return logits[:, 0]


@contextmanager
def _decoder_returning(model: PreTrainedModel, output: BaseModelOutput) -> Iterator[None]:
    """Make a model's decoder, and what the decoder is part of, return this output while the block lasts."""
    decoders = {_decoder(model), model.base_model} - {model}
    forwards = {decoder: decoder.__dict__.get("forward") for decoder in decoders}
    calls: list[None] = []

    def forward(*_: Any, **__: Any) -> BaseModelOutput:
        calls.append(None)
        return output

    for decoder in decoders:
        decoder.forward = forward
    try:
        yield
    finally:
        for decoder, own in forwards.items():
            del decoder.forward
            if own is not None:
                decoder.forward = own
    if not calls:
        raise NotImplementedError("the logits are not computed from the hidden states of its decoder")


def _decoder(model: PreTrainedModel) -> PreTrainedModel:
    decoder: PreTrainedModel = model.get_decoder()
    if decoder is not model:
        return decoder
    # transformers does not find that of Llama 4.
    return next(module for module in model.children() if isinstance(module, PreTrainedModel))
