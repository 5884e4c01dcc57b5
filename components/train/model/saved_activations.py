"""Less memory for the backward pass, to the same bits: what a model keeps of the forward pass though it need not."""

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.functional import silu
from transformers.activations import SiLUActivation


class _GatedProduct(torch.autograd.Function):
    """silu(gate) * up, of which silu(gate) is computed anew instead of kept; the idea is Liger Kernel's SwiGLU."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), silu(gate).mul_(gradient)


def reduce_saved_activations(model: nn.Module) -> None:
    """Change a model with an adapter on it such that it keeps less, layer by layer, where it is known how.

    Of a gated feed-forward layer three of its four wide tensors are kept. PEFT's copies of a layer's inputs in fp32 are
    left out: with mixed precision each would only be turned back, and that copy kept, once for every adapter.
    """
    for module in model.modules():
        # With dropout an adapter keeps an input of its own anyway.
        if isinstance(module, LoraLayer) and isinstance(module.lora_dropout["default"], nn.Identity):
            module.cast_input_dtype_enabled = False
        if isinstance(getattr(module, "act_fn", None), SiLUActivation) and hasattr(module, "gate_proj"):
            module.forward = MethodType(_gated_forward, module)


def _gated_forward(module: Any, hidden: torch.Tensor) -> Any:
    return module.down_proj(_GatedProduct.apply(module.gate_proj(hidden), module.up_proj(hidden)))
