"""Reduces the tensors that the forward pass saves for the backward pass, with bit-identical results."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.functional import silu
from transformers.activations import SiLUActivation

from chatmetrics.components.console import note
from chatmetrics.components.train.model.answer_loss import mixed_precision

# Sizes of the random inputs with which a replaced layer is compared; the large ones reach the limits of layers that
# clamp their values.
INPUT_SIZES = (1.0, 10.0, 100.0, 1000.0)
TOLERANCE = 1e-6  # both compute the same operations in the same order, in any precision


class _GatedProduct(torch.autograd.Function):
    """silu(gate) * up; silu(gate) is not saved but computed again in the backward pass, as in Liger Kernel's SwiGLU."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), silu(gate).mul_(gradient)


def reduce_saved_activations(model: PeftModel) -> None:
    """Change the layers of a model with an adapter such that they save less, for the kinds of layers known here.

    A gated feed-forward layer saves three of its four wide tensors. It is replaced only if that gives the output and
    the gradient of the original layer, for a random input; otherwise a note says which layers stay as they are. PEFT no
    longer casts a layer's inputs to fp32: with mixed precision each copy would only be cast back, and the result saved
    once for every adapter.
    """
    _cast_adapter_inputs(model, False)
    kept: dict[str, float] = {}
    for module in model.modules():
        if not _looks_gated(module):
            continue
        difference = _difference_if_replaced(module, model)
        if difference <= TOLERANCE:
            module.forward = MethodType(_gated_forward, module)
        else:
            kept[type(module).__name__] = max(difference, kept.get(type(module).__name__, 0))
    for name, difference in kept.items():
        note(
            f"{name} computes more than silu(gate) * up (a replacement differs from it by {difference:.2g} of its "
            "size), so it is not replaced and saves more for the backward pass"
        )


def restore_layers(model: PeftModel) -> None:
    """Undo `reduce_saved_activations`."""
    _cast_adapter_inputs(model, True)
    for module in _replaced(model):
        del module.forward


@contextmanager
def original_layers(model: PeftModel) -> Iterator[None]:
    """Undo `reduce_saved_activations` while the block lasts."""
    replaced, adapters = _replaced(model), _without_cast(model)
    restore_layers(model)
    try:
        yield
    finally:
        for module in replaced:
            module.forward = MethodType(_gated_forward, module)
        for adapter in adapters:
            adapter.cast_input_dtype_enabled = False


def _cast_adapter_inputs(model: nn.Module, cast: bool) -> None:
    for module in model.modules():
        # With dropout an adapter saves its own input anyway.
        if isinstance(module, LoraLayer) and isinstance(module.lora_dropout["default"], nn.Identity):
            module.cast_input_dtype_enabled = cast


def _without_cast(model: nn.Module) -> list[LoraLayer]:
    adapters = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return [adapter for adapter in adapters if not adapter.cast_input_dtype_enabled]


def _replaced(model: nn.Module) -> list[nn.Module]:
    forwards = [(module, module.__dict__.get("forward")) for module in model.modules()]
    return [module for module, forward in forwards if getattr(forward, "__func__", None) is _gated_forward]


def _looks_gated(module: nn.Module) -> bool:
    has_parts = all(isinstance(getattr(module, f"{part}_proj", None), nn.Module) for part in ("gate", "up", "down"))
    return (
        has_parts
        and isinstance(getattr(module, "act_fn", None), SiLUActivation)
        and len(inspect.signature(module.forward).parameters) == 1
    )


def _gated_forward(module: Any, hidden: torch.Tensor) -> Any:
    return module.down_proj(_GatedProduct.apply(module.gate_proj(hidden), module.up_proj(hidden)))


def _difference_if_replaced(module: Any, model: PeftModel) -> float:
    """The largest difference that replacing a layer makes to its output or its input's gradient, relative to either.

    Outputs that overflow in half precision are compared as such.
    """
    random, device = torch.Generator().manual_seed(0), model.device
    sizes = torch.tensor(INPUT_SIZES).repeat_interleave(2)
    rows = sizes[:, None] * torch.randn(len(sizes), module.gate_proj.in_features, generator=random)
    hidden = rows.to(device, model.get_base_model().dtype).requires_grad_()
    upstream = torch.randn(rows.shape, generator=random)

    def results(forward: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)  # for dropout
        output = forward(hidden)
        gradients = torch.autograd.grad(output, hidden, upstream.to(output))
        return [output.detach().float(), gradients[0].float()]

    training = module.training
    module.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), mixed_precision(model.get_base_model()):
        pairs = zip(results(module.forward), results(MethodType(_gated_forward, module)), strict=True)
        difference = max(_relative_difference(original, replaced) for original, replaced in pairs)
    module.train(training)
    return difference


def _relative_difference(original: torch.Tensor, replaced: torch.Tensor) -> float:
    finite = original.isfinite()
    if not torch.equal(finite, replaced.isfinite()):
        return float("inf")
    differences = (replaced - original).where(finite, torch.zeros(())).norm(dim=-1)
    sizes = original.where(finite, torch.zeros(())).norm(dim=-1)
    return float((differences / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)).max())
