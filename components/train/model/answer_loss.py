"""The loss of the answers' tokens, of examples in rows or in trees, without logits of any other token."""

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
from chatmetrics.components.train.data.trees import TokenizedExample, padded_pack, tree_pack
from chatmetrics.components.train.estimate.memory import LOGITS_AT_ONCE

CHECK_TOKENS = 32
MASK_ALIGNMENT = 16
# How much the losses of an example may differ in the probe: with what stands beside it, which it does not see at all,
# and from those of the example alone, where the order of additions is another.
SEEN = 1e-4
OFF, OFF_IN_HALF_PRECISION = {torch.float32: 1e-3}, 0.5


def give_answer_loss(model: PreTrainedModel) -> None:
    """Make the model's forward take a `Pack` and return the loss of each of its answer tokens, in fp32.

    It is the forward itself that changes, so that adapters, DDP and mixed precision, which wrap it, work as ever.
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
    """Which tokens a token sees, as this implementation of attention takes it: those whose subtree it is in.

    Attention that takes a dense mask adds it to its scores. It would make such numbers of booleans too, in every layer,
    and keep them all for the backward pass.
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
    # Of a GPU's kernels one copies masks whose rows do not begin at multiples of so many numbers.
    aligned = -(-length // MASK_ALIGNMENT) * MASK_ALIGNMENT
    mask = torch.zeros((*unseen.shape[:-1], aligned), dtype=dtype, device=ends.device)[..., :length]
    return mask.masked_fill_(unseen, float("-inf"))


def _token_losses(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Cross-entropy of each token, of no more logits at once than fit in 128 MiB; those are computed again backward.

    With a head that is dealt out to processes it is all at once.
    """
    # A head that is dealt out to processes comes together for each call, so that all must call it equally often.
    at_once = len(hidden) if isinstance(head, FSDPModule) else max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    pieces = list(zip(*(tensor.split(at_once) for tensor in (hidden, targets)), strict=True))

    def losses(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(hidden).float(), targets, reduction="none")

    if len(pieces) == 1:
        return losses(hidden, targets)
    return torch.cat([checkpoint(losses, *piece, use_reentrant=False) for piece in pieces])


@torch.no_grad()
def check_trees(model: PreTrainedModel) -> None:
    """Try whether the model, whose forward is `give_answer_loss`'s, computes an example in a tree as it does alone.

    Raises:
        InputError: it does not; its forward or its attention may ignore the mask, or its layers be of another kind.
    """
    training = model.training
    model.eval()
    random = np.random.default_rng(0)
    vocabulary = model.config.get_text_config().vocab_size
    schema, *endings = (random.integers(vocabulary, size=CHECK_TOKENS, dtype=np.int32) for _ in range(4))
    # In the order in which they stand in a tree: the last would see the others if it could.
    endings.sort(key=list)
    first, other, last = (TokenizedExample(np.concatenate([schema, ending]), CHECK_TOKENS) for ending in endings)

    def losses(pack: Any) -> torch.Tensor:
        losses: torch.Tensor = model(**{name: tensor.to(model.device) for name, tensor in pack.items()})
        return losses[-CHECK_TOKENS:]

    alone, *in_trees = losses(padded_pack([last])), losses(tree_pack([first, last])), losses(tree_pack([other, last]))
    seen = (in_trees[0] - in_trees[1]).abs().max().item()
    off = (in_trees[0] - alone).abs().mean().item()
    model.train(training)
    # A loss that is not a number is none of this check's business.
    if seen > SEEN or off > OFF.get(model.dtype, OFF_IN_HALF_PRECISION):
        raise InputError(
            f"{type(model).__name__} with {model.config._attn_implementation} attention computes an example in a tree "
            f"otherwise than alone (losses differ by {off:.3g}, and by {seen:.3g} with what stands beside it); "
            "set train.packing to false"
        )
