"""The checks. Each is a function of its place that adds what it measures to `found` and raises an error if it fails.

Packages other than torch are imported inside the functions, so that the first check runs without them.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import flex_attention as torch_flex_attention
from torch.nn.functional import scaled_dot_product_attention

from tests.gpu_check.place import Place

Found = dict[str, Any]
# Heads, heads of keys, and width of a head: of Qwen2's 0.5B and 7B, and of Llama 3's 8B, which are a power of two.
HEADS = {"14 heads of 64": (14, 2, 64), "28 heads of 128": (28, 4, 128), "32 heads of 128": (32, 8, 128)}


TINY_HEADS = {"3 heads of 16": (3, 1, 16), "4 heads of 16": (4, 2, 16)}
# FlexAttention may be this many times farther from fp32 than SDPA is, which rounds elsewhere.
TOLERANCE = 3
compiled_flex_attention = torch.compile(torch_flex_attention.flex_attention)


class DoesNotFit(Exception):
    """The check needs more than this machine has, and is skipped."""


# --- FlexAttention, against SDPA -------------------------------------------------------------------------------------


def flex_kernel(place: Place, found: Found) -> None:
    """Outputs and gradients of compiled FlexAttention on trees, and those of SDPA, against SDPA in fp32."""
    if place.has_gpu and torch.cuda.get_device_capability() < (8, 0):
        raise DoesNotFit("FlexAttention needs compute capability 8.0, below which SDPA is used")
    dtype = torch.bfloat16 if place.has_gpu else torch.float32
    trees = [(64, [30, 40]), (90, [25] * 4)] if place.tiny else [(342, [54] * 8), (900, [75] * 15), (3000, [137] * 8)]
    wrong = []
    for name, heads in (TINY_HEADS if place.tiny else HEADS).items():
        errors: dict[str, float] = {}
        for schema, questions in trees:
            with uncompiled_on_cpu(place):
                of_tree = flex_and_sdpa_errors(tree_ends(schema, questions, place), heads, dtype)
            errors = {key: max(value, errors.get(key, 0.0)) for key, value in of_tree.items()}
            wrong += [
                f"{name}: {part} differs by {of_tree[f'flex_{part}']:.3g}, SDPA's by {of_tree[f'sdpa_{part}']:.3g}"
                for part in ("output", "gradients")
                if not of_tree[f"flex_{part}"] <= max(TOLERANCE * of_tree[f"sdpa_{part}"], 1e-5)
            ]
        found[name] = errors
    found["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    if wrong:
        raise ArithmeticError("; ".join(wrong))


@contextmanager
def uncompiled_on_cpu(place: Place) -> Iterator[None]:
    """On a CPU, where torch cannot compile FlexAttention's backward pass and refuses it, run it as it is."""
    if place.has_gpu:
        yield
        return
    with patch.object(torch_flex_attention, "_validate_device"), torch.compiler.set_stance("force_eager"):
        yield


def tree_ends(schema: int, questions: list[int], place: Place) -> torch.Tensor:
    """The `ends` of a tree (see trees.py) of a schema and questions of these lengths."""
    ends = [schema + sum(questions)] * schema
    for length in questions:
        ends += [len(ends) + length] * length
    return torch.tensor([ends], device=place.device)


def flex_and_sdpa_errors(ends: torch.Tensor, heads: tuple[int, int, int], dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of both in `dtype`, and milliseconds of a forward and backward pass, the second of two."""
    length = ends.shape[1]
    queries, keys, width = heads
    torch.manual_seed(0)
    shapes = [(1, count, length, width) for count in (queries, keys, keys)]
    exact = [torch.randn(shape, device=ends.device, requires_grad=True) for shape in shapes]
    direction = torch.randn(shapes[0], device=ends.device)

    def sees(row: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (query < ends[row, key])

    block_mask = torch_flex_attention.create_block_mask(sees, 1, None, length, length, device=str(ends.device))
    columns = torch.arange(length, device=ends.device)
    dense = (columns <= columns[:, None]) & (columns[:, None] < ends[:, None, None, :])
    # As transformers: keys and values are repeated only for heads that are no power of two.
    grouped = queries & (queries - 1) == 0
    flex = partial(compiled_flex_attention, block_mask=block_mask, enable_gqa=grouped)
    sdpa = partial(scaled_dot_product_attention, attn_mask=dense)
    reference, _ = _outputs_and_gradients(sdpa, exact, direction, repeated=True)
    rounded = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    found = {}
    for name, attention, repeated in (("flex", flex, not grouped), ("sdpa", sdpa, True)):
        _outputs_and_gradients(attention, rounded, direction.to(dtype), repeated)  # compiles it
        results, found[f"{name}_ms"] = _outputs_and_gradients(attention, rounded, direction.to(dtype), repeated)
        pairs = zip(results, reference, strict=True)
        errors = [float((ours - exactly).abs().max() / exactly.abs().max()) for ours, exactly in pairs]
        found[f"{name}_output"], found[f"{name}_gradients"] = errors[0], max(errors[1:])
    return found


def _outputs_and_gradients(
    attention: Callable[..., torch.Tensor], inputs: list[torch.Tensor], direction: torch.Tensor, repeated: bool
) -> tuple[list[torch.Tensor], float]:
    """The output and all gradients in fp32, and the milliseconds they took; `repeated`: each head gets its own keys."""
    started = perf_counter()
    queries, *others = inputs
    if repeated:
        others = [tensor.repeat_interleave(queries.shape[1] // tensor.shape[1], 1) for tensor in others]
    output = attention(queries, *others)
    gradients = torch.autograd.grad(output, inputs, direction)
    if queries.is_cuda:
        torch.cuda.synchronize()
    milliseconds = 1000 * (perf_counter() - started)
    return [output.detach().float(), *(gradient.float() for gradient in gradients)], milliseconds


def flex_model(place: Place, found: Found) -> None:
    """What `attention: auto` chooses here; and a model's losses and gradients with FlexAttention and SDPA."""
    from chatmetrics.components.train.estimate.sizes import Sizes
    from chatmetrics.components.train.model.device import attention_implementation
    from chatmetrics.components.train.settings import FLEX_CAPABILITY, TrainSettings
    from tests.gpu_check.training import CONFIGS, losses_and_gradients, precision, small_base

    started = perf_counter()
    sizes = Sizes.of(CONFIGS["tiny" if place.tiny else "7B"])
    found["auto"] = attention_implementation(TrainSettings(), sizes, torch.bfloat16)
    found["auto_seconds"] = perf_counter() - started
    base = small_base(place)
    exact, exact_gradients = losses_and_gradients(place, base, "sdpa", "fp32")
    for attention in ("flex_attention", "sdpa"):
        with uncompiled_on_cpu(place):
            losses, gradients = losses_and_gradients(place, base, attention, precision(place))
        found[attention] = {
            "loss_difference": float((losses - exact).abs().max()),
            "gradient_difference": float((gradients - exact_gradients).norm() / exact_gradients.norm()),
        }
    for part, ours in found["flex_attention"].items():
        if not ours <= max(TOLERANCE * found["sdpa"][part], 1e-4):
            raise ArithmeticError(
                f"{part.replace('_', ' ')} with FlexAttention is {ours:.3g}, {found['sdpa'][part]:.3g} with SDPA"
            )
    if place.has_gpu and torch.cuda.get_device_capability() >= (int(FLEX_CAPABILITY), 0) and found["auto"] == "sdpa":
        raise RuntimeError("attention auto is sdpa although this GPU could use flex_attention; the note above says why")


# --- Training --------------------------------------------------------------------------------------------------------


def fp16(place: Place, found: Found) -> None:
    """Training in fp16, with a GradScaler."""
    _short_run(place, found, precision="fp16")


def nf4(place: Place, found: Found) -> None:
    """Training on a base in 4 bits."""
    _short_run(place, found, quantize_base="nf4", gradient_checkpointing=True)


def generation(place: Place, found: Found) -> None:
    """Early stopping by accuracy, which generates answers with the model that is being trained."""
    measured = _short_run(place, found, early_stopping="accuracy", evaluation_steps=6, evaluation_questions=4)
    found["dev_accuracy"] = [record["dev_accuracy"] for record in measured.records if "dev_accuracy" in record]
    if not found["dev_accuracy"]:
        raise RuntimeError("dev questions were not measured")


def _short_run(place: Place, found: Found, **settings: Any) -> Any:
    """Train a small base; its loss has to be finite and to fall."""
    from chatmetrics.components.train.settings import TrainSettings
    from tests.gpu_check.training import small_base, small_dataset, train

    defaults = {
        "max_steps": 12 if place.tiny else 30,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "learning_rate": 2e-3,
        "logging_steps": 1,
    }
    measured = train(place, small_base(place), small_dataset(place), TrainSettings(**{**defaults, **settings}))
    found |= {"precision": measured.precision, "attention": measured.attention}
    found |= {"first_loss": measured.losses[0], "last_loss": measured.losses[-1]}
    _check_finite(measured.losses)
    if not measured.losses[-1] < 0.9 * measured.losses[0]:
        raise ArithmeticError(f"the loss does not fall: {measured.losses[0]:.3f}, then {measured.losses[-1]:.3f}")
    return measured


def _check_finite(losses: list[float]) -> None:
    if not all(map(math.isfinite, losses)):
        raise ArithmeticError(f"the loss is not finite: {losses}")


def two_processes(place: Place, found: Found) -> None:
    """Two processes, one per GPU, learn what one process learns."""
    from chatmetrics.components.train.settings import TrainSettings
    from tests.gpu_check.training import launch, small_base, small_dataset

    one = TrainSettings(max_steps=10, batch_size=4, gradient_accumulation=2, learning_rate=2e-3, logging_steps=1)
    for processes in (1, 2):
        settings = one.model_copy(update={"processes": processes, "batch_size": 4 // processes})
        found[f"loss_of_{processes}"] = launch(place, small_base(place), small_dataset(place), settings)
    if abs(found["loss_of_1"] - found["loss_of_2"]) > 0.02 * found["loss_of_1"]:
        raise ArithmeticError("the losses of one and of two processes differ")


def _speed(place: Place, found: Found, size: str, published: bool) -> None:
    """Tokens per second and MFU, and peak memory against the estimate; memory beyond 1.1 times that is a failure."""
    from tests.gpu_check.training import measure_speed

    measure_speed(place, found, size, published)
    _check_finite(found.pop("losses"))
    if place.has_gpu and found["peak_gib"] > 1.1 * found["estimated_gib"]:
        raise MemoryError(f"{found['peak_gib']:.2f} GiB were allocated, {found['estimated_gib']:.2f} estimated")


speed_0_5b_published = partial(_speed, size="0.5B", published=True)
speed_0_5b_recommended = partial(_speed, size="0.5B", published=False)
speed_7b_published = partial(_speed, size="7B", published=True)
speed_7b_recommended = partial(_speed, size="7B", published=False)
