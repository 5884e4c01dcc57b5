"""The loss of answer tokens, for padded rows and trees, without computing the logits of any other token.

prompt            answer
t0  t1  t2  t3    t4  t5  EOS
            |     |   |
            v     v   v            sources: hidden states that predict answer tokens (here 3, 4, 5)
            t4    t5  EOS          targets

decoder:  all tokens               -> hidden states
head:     only `sources`           -> logits, at most 128 MiB of them at once:

    sources  [ piece 0 | piece 1 | piece 2 ]      each piece's logits are computed, reduced to losses and freed,
                  |         |         |           and computed again in the backward pass
    losses   [ ------- | ------- | ------- ]
"""

from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.data.trees import Pack, TokenizedExample, padded_pack, tree_pack
from chatmetrics.components.train.estimate.memory import LOGITS_AT_ONCE

CHECK_TOKENS = 32
MASK_ALIGNMENT = 16
# Tolerances of `check_trees`. Between two trees with different neighbors, which the example must not see at all:
NEIGHBOR_TOLERANCE = 1e-4
# Between a tree and the example alone, where sums are computed in another order:
TOLERANCE, HALF_PRECISION_TOLERANCE = {torch.float32: 1e-3}, 0.5


def give_answer_loss(model: PreTrainedModel) -> None:
    """Make the model's forward take a `Pack` and return the loss of each of its answer tokens, in fp32.

    The forward itself is replaced, so that adapters, DDP and mixed precision, which wrap it, work as usual.
    """
    model.forward = MethodType(_answer_losses, model)


def _answer_losses(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    sources: torch.Tensor,
    targets: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    ends: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    mask = None if ends is None else tree_mask(ends, model.config._attn_implementation, model.dtype)
    decoder = model.get_decoder()
    output = decoder(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False)
    hidden = output.last_hidden_state.flatten(0, 1).index_select(0, sources)
    return _token_losses(hidden, targets, model.get_output_embeddings())


def tree_mask(ends: torch.Tensor, attention: str, dtype: torch.dtype) -> Any:
    """The attention mask of a tree: a token sees the tokens whose subtree it is in (see trees.py).

    FlexAttention gets a block mask. Other implementations get a dense mask of 0 and -inf in `dtype`: from booleans each
    layer would make such a mask again and save it for the backward pass.
    """
    length = ends.shape[1]
    if attention == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(row: Any, head: Any, query: Any, key: Any) -> Any:
            return (key <= query) & (query < ends[row, key])

        return create_block_mask(sees, ends.shape[0], None, length, length, device=str(ends.device))
    columns = torch.arange(length, device=ends.device)
    queries = columns[:, None]
    unseen = (columns > queries) | (queries >= ends[:, None, None, :])
    # One of the GPU kernels copies masks whose rows do not start at multiples of MASK_ALIGNMENT.
    aligned = -(-length // MASK_ALIGNMENT) * MASK_ALIGNMENT
    mask = torch.zeros((*unseen.shape[:-1], aligned), dtype=dtype, device=ends.device)[..., :length]
    return mask.masked_fill_(unseen, float("-inf"))


def _token_losses(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Cross-entropy of each token, in pieces whose logits fit in 128 MiB; see the module's picture."""
    # FSDP gathers a sharded head for each call, and all processes must call it equally often: one piece.
    at_once = len(hidden) if isinstance(head, FSDPModule) else max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    pieces = list(zip(hidden.split(at_once), targets.split(at_once), strict=True))

    def losses(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(hidden).float(), targets, reduction="none")

    if len(pieces) == 1:
        return losses(hidden, targets)
    return torch.cat([checkpoint(losses, *piece, use_reentrant=False) for piece in pieces])


@torch.no_grad()
def check_trees(model: PreTrainedModel) -> None:
    """Check that the model, prepared by `give_answer_loss`, computes an example in a tree as it does alone.

    Raises:
        InputError: it does not; its forward or its attention may ignore the mask, or its layers need another mask.
    """
    training = model.training
    model.eval()
    random = np.random.default_rng(0)
    vocabulary = model.config.get_text_config().vocab_size
    schema, *endings = (random.integers(vocabulary, size=CHECK_TOKENS, dtype=np.int32) for _ in range(4))
    # Sorted as in a tree: the last could see the others if the mask were ignored.
    endings.sort(key=list)
    first, other, last = (TokenizedExample(np.concatenate([schema, ending]), CHECK_TOKENS) for ending in endings)

    def losses_of_last(pack: Pack) -> torch.Tensor:
        losses: torch.Tensor = model(**{name: tensor.to(model.device) for name, tensor in pack.items()})  # type: ignore[attr-defined]
        return losses[-CHECK_TOKENS:]

    alone = losses_of_last(padded_pack([last]))
    after_first = losses_of_last(tree_pack([first, last]))
    after_other = losses_of_last(tree_pack([other, last]))
    neighbor_difference = (after_first - after_other).abs().max().item()
    difference = (after_first - alone).abs().mean().item()
    model.train(training)
    # A NaN compares as false and passes: it is reported when training computes it.
    if neighbor_difference > NEIGHBOR_TOLERANCE or difference > TOLERANCE.get(model.dtype, HALF_PRECISION_TOLERANCE):
        raise InputError(
            f"{type(model).__name__} with {model.config._attn_implementation} attention does not compute an example in "
            f"a tree as it does alone (losses differ by {difference:.3g}, and by {neighbor_difference:.3g} between "
            "different neighbors); set train.packing to false"
        )
