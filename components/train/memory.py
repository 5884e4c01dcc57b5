"""What memory training takes, by part, from a model's sizes and the settings alone: nothing is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.sizes import Sizes

GIB = 2**30
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
FOUR_BITS = 0.5 + 1 / 64 + 1 / 8192  # NF4 with its scales, those quantized too (QLoRA, arXiv 2305.14314)
LOGITS_AT_ONCE = 2**25  # see answer_loss.py
# What CUDA, its libraries and gaps between blocks take beside tensors: about a gigabyte.
GPU_OVERHEAD = 1.0 * GIB
ANSWER_SHARE = 0.5  # of a pack's tokens, at most
EVENTS = Path("/sys/fs/cgroup/memory.events")  # of a container, cgroup v2
REMEDIES = (
    "lower train.batch_size (and raise train.gradient_accumulation) or train.pack_tokens, set "
    "train.gradient_checkpointing=true or train.base_bits=4, or take a larger pool: `chatmetrics estimate` compares"
)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the peak.

    Attributes:
        weights: of the base.
        adapter: its weights and their gradients.
        optimizer: AdamW's two moments.
        activations: what the backward pass wants of the forward pass, and what computing one layer takes besides.
        logits: of the answers' tokens, as many as are computed at once.
        mask: of attention, where it is dense.
        overhead: of the device beside tensors.
    """

    weights: float
    adapter: float
    optimizer: float
    activations: float
    logits: float
    mask: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(size for _, size in self.parts())

    def parts(self) -> Iterator[tuple[str, float]]:
        """Name and bytes of each part."""
        return ((field.name, getattr(self, field.name)) for field in fields(self))


def memory_of(
    sizes: Sizes,
    settings: TrainSettings,
    flexible: bool = False,
    tokens: int = 0,
    answer_tokens: int = 0,
    gpu: bool = True,
) -> Memory:
    """Estimate the peak of a training step.

    Args:
        sizes: of the base.
        settings: the recipe's `train` section, fitted to its pool.
        flexible: whether attention is FlexAttention's, which needs no dense mask.
        tokens: of the largest pack; 0: the most that the settings allow.
        answer_tokens: of them those with loss; 0: half of them.
        gpu: whether the device is one.
    """
    width = BYTES[settings.precision]
    tokens = tokens or most_tokens(settings)
    adapter = 4 * _adapter_weights(sizes, settings)
    layer = tokens * _kept_of_a_layer(sizes, settings, width, flexible or not settings.packing)
    backward = tokens * _backward_of_a_layer(sizes, width)
    if settings.gradient_checkpointing:
        activations = tokens * sizes.layers * sizes.hidden * width + layer + backward
    else:
        activations = sizes.layers * layer + backward
    return Memory(
        weights=_weights(sizes, settings, width),
        adapter=2 * adapter,
        optimizer=2 * adapter,
        activations=activations,
        logits=_logits(sizes, width, answer_tokens or round(tokens * ANSWER_SHARE)),
        mask=0.0 if flexible or not settings.packing else float(width * tokens**2),
        overhead=GPU_OVERHEAD if gpu else 0.0,
    )


def most_tokens(settings: TrainSettings) -> int:
    """Tokens that a device may have to take at once, padding too."""
    if settings.packing and settings.pack_tokens:
        return max(settings.pack_tokens, settings.cutoff_length)
    return settings.batch_size * settings.cutoff_length


def _weights(sizes: Sizes, settings: TrainSettings, width: int) -> float:
    return width * float(sizes.parameters)


def _adapter_weights(sizes: Sizes, settings: TrainSettings) -> float:
    query, keys = sizes.heads * sizes.head_width, sizes.key_value_heads * sizes.head_width
    shapes = {
        "q_proj": sizes.hidden + query,
        "k_proj": sizes.hidden + keys,
        "v_proj": sizes.hidden + keys,
        "o_proj": query + sizes.hidden,
        "gate_proj": sizes.hidden + sizes.intermediate,
        "up_proj": sizes.hidden + sizes.intermediate,
        "down_proj": sizes.intermediate + sizes.hidden,
    }
    named = shapes if settings.lora_targets == "all-linear" else settings.lora_targets
    return float(sizes.layers * settings.lora_rank * sum(shapes.get(name, 0) for name in named))


def _kept_of_a_layer(sizes: Sizes, settings: TrainSettings, width: int, shared_heads: bool) -> float:
    """Bytes a token that one layer keeps for its backward pass, as counted in what autograd saves of a Qwen2's.

    In the width of the precision: gate, up and their product (see lean.py); queries, keys, values and what attention
    gives, keys and values once for every head where attention takes a mask; the two normalized inputs; what each
    adapter's first matrix gives. In fp32: the inputs of the two norms, and a few numbers.
    """
    query = sizes.heads * sizes.head_width
    keys = sizes.key_value_heads * sizes.head_width if shared_heads else query
    wide = 3 * sizes.intermediate + 2 * query + 2 * keys + 2 * sizes.hidden + 7 * settings.lora_rank
    return width * wide + 4 * (2 * sizes.hidden + sizes.heads + 2)


def _backward_of_a_layer(sizes: Sizes, width: int) -> float:
    """Bytes a token that the backward pass of a layer holds besides: gradients of its widest part."""
    return width * (3 * sizes.intermediate + 2 * sizes.hidden)


def _logits(sizes: Sizes, width: int, answer_tokens: int) -> float:
    """In the precision, in fp32, as logarithms of probabilities, and the gradients of two of these."""
    return float(min(LOGITS_AT_ONCE, answer_tokens * sizes.vocabulary) * (12 + 2 * width))


def kills_for_memory() -> int:
    """How often the kernel has killed a process of this container for want of memory; 0 where that is not told."""
    try:
        events = dict(line.split() for line in EVENTS.read_text().splitlines())
    except OSError:
        return 0
    return int(events.get("oom_kill", 0))
