"""What training an adapter takes of a device's memory, computed from the base's config.json and the settings.

A sum of the tensors that training holds when it holds most: no factor in it is fitted. Nothing of torch is needed. For
decoders of Llama's kind (Qwen2 and 3, Mistral and others): RMSNorm, rotary positions, an MLP with a gate.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.settings import TrainSettings

GIB = 2**30
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
LOGITS_AT_ONCE = 2**25  # 128 MiB in fp32; of more answers' tokens the loss is computed a piece at a time
# In blocks of 64, whose scales are 8-bit numbers in blocks of 256 with a scale in fp32 (QLoRA's double quantization).
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
# Of a GPU: its context, the workspaces of cuBLAS, and what torch's allocator holds but cannot use. An allowance.
GPU_OVERHEAD = GIB
EVENTS = Path("/sys/fs/cgroup/memory.events")  # of a container, cgroup v2
REMEDIES = (
    "lower train.batch_size (and raise train.gradient_accumulation) or train.pack_tokens, set train."
    "gradient_checkpointing=true or train.quantize_base=nf4, or take a larger pool: `chatmetrics estimate` compares"
)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what takes them.

    Attributes:
        weights: of the base.
        adapter: its weights in fp32, their gradients and, in half precision, their copies in that.
        optimizer: AdamW's two moments in fp32.
        activations: what the forward pass keeps for the backward pass.
        mask: of the trees, where attention takes a dense one.
        buffers: of DDP, of FSDP's gathered layers, of a 4-bit weight as it is multiplied with.
        logits: what the loss takes while it is computed.
        layer: what the backward pass takes at a layer; with gradient checkpointing that layer's activations too.
        overhead: of a GPU, beside tensors.
    """

    weights: float
    adapter: float
    optimizer: float
    activations: float
    mask: float
    buffers: float
    logits: float
    layer: float
    overhead: float

    @property
    def total(self) -> float:
        """The most that there is at once. The logits are gone before the backward pass comes to a layer."""
        return sum(size for _, size in self.parts()) - min(self.logits, self.layer)

    def parts(self) -> Iterator[tuple[str, float]]:
        """Name and bytes of each part."""
        return ((field.name, getattr(self, field.name)) for field in fields(self))


def memory_of(
    sizes: Sizes,
    settings: TrainSettings,
    *,
    tokens: int = 0,
    answers: int = 0,
    dense: bool = True,
    shards: int = 1,
    gpu: bool = True,
) -> Memory:
    """The memory of one training process.

    Args:
        sizes: of the base.
        settings: with the precision that the device computes in.
        tokens: of the largest pack or, with padding, of the largest batch; 0: the most that settings allow.
        answers: those of them that are predicted; 0: as many as have their logits computed at once.
        dense: whether attention takes trees with a dense mask, as SDPA does and FlexAttention does not.
        shards: devices that share the base's weights (FSDP).
        gpu: whether the device is one.
    """
    width = BYTES[settings.precision]
    tokens = tokens or max_tokens(settings)
    dense &= settings.packing
    adapted = {name: shape for name, shape in sizes.linears().items() if _is_adapted(name, settings)}
    trained = sizes.layers * settings.lora_rank * sum(map(sum, adapted.values()))
    of_layer = tokens * _kept_by_layer(sizes, settings, width, adapted, repeated=dense)
    mlp = tokens * _backward_of_mlp(sizes, settings, width)
    last_norm = tokens * 4 * 5 * sizes.hidden  # five gradients and products in fp32
    checkpointing = settings.gradient_checkpointing
    # The last norm keeps its input in fp32; the first layer's, whose input needs no gradient, does not.
    kept = tokens * sizes.hidden * (sizes.layers * width + 4) if checkpointing else sizes.layers * of_layer
    layer_weights = _layer_weights(sizes, settings, width)
    weights = sizes.layers * layer_weights + sizes.outside_layers * width
    return Memory(
        weights=weights / shards,
        adapter=trained * (8 if width == 4 else 8 + width),
        optimizer=trained * 8,
        activations=kept,
        mask=tokens**2 * width if dense else 0,
        buffers=_buffers(sizes, settings, width, trained, layer_weights if shards > 1 else 0),
        logits=_logits(sizes, width, tokens, answers or tokens),
        layer=of_layer + mlp if checkpointing else max(mlp, last_norm),
        overhead=GPU_OVERHEAD if gpu else 0,
    )


def max_tokens(settings: TrainSettings) -> int:
    """Tokens that a device may have to take at once, padding too."""
    if settings.packing and settings.pack_tokens:
        return max(settings.pack_tokens, settings.cutoff_length)  # an example is never cut
    return settings.batch_size * settings.cutoff_length


def _is_adapted(name: str, settings: TrainSettings) -> bool:
    targets = settings.lora_targets
    return isinstance(targets, str) or any(target.split(".")[-1] == name for target in targets)


def _layer_weights(sizes: Sizes, settings: TrainSettings, width: int) -> float:
    return sizes.layer_weights * (NF4_BYTES if settings.quantize_base == "nf4" else width)


def _kept_by_layer(
    sizes: Sizes, settings: TrainSettings, width: int, adapted: Mapping[str, tuple[int, int]], *, repeated: bool
) -> int:
    """Bytes a token that a layer keeps for its backward pass.

    Args:
        repeated: whether attention takes keys and values once for every head of the queries.
    """
    norms = 2 * 4 * (sizes.hidden + 1)  # their inputs, in fp32
    # Queries, keys, values and the result, which is o_proj's input too, and a number in fp32 of each head.
    attention = width * 2 * (sizes.queries + (sizes.queries if repeated else sizes.keys)) + 4 * sizes.heads
    mlp = width * 2 * sizes.intermediate  # the gate and what it is multiplied with, see lean.py
    if settings.lora_dropout:
        # What is left of them, and which it is: of a GPU's in bytes, of a CPU's, which computes in fp32, in numbers.
        inputs = (width + (4 if width == 4 else 1)) * sum(rows for rows, _ in adapted.values())
    else:
        of_attention, of_mlp = (
            adapted.keys() & {"q_proj", "k_proj", "v_proj"},
            adapted.keys() & {"gate_proj", "up_proj"},
        )
        inputs = width * (
            sizes.hidden * (bool(of_attention) + bool(of_mlp)) + ("down_proj" in adapted) * sizes.intermediate
        )
    return norms + attention + mlp + inputs + width * settings.lora_rank * len(adapted)


def _backward_of_mlp(sizes: Sizes, settings: TrainSettings, width: int) -> int:
    """Bytes a token beside what is kept, where they are most in a layer.

    They are the gradient of the MLP's output, and those of down_proj's input, by the base and by the adapter.
    """
    # With dropout PEFT makes the adapter's input fp32.
    in_fp32 = 4 * 2 * sizes.intermediate if settings.lora_dropout and width < 4 else 0
    return width * (2 * sizes.intermediate + sizes.hidden) + in_fp32


def _logits(sizes: Sizes, width: int, tokens: int, answers: int) -> int:
    """Of the logits in fp32 their softmax is kept; then there are two gradients of theirs. Beside them, all states."""
    at_once = min(answers, max(1, LOGITS_AT_ONCE // sizes.vocabulary))
    return 3 * 4 * at_once * sizes.vocabulary + tokens * sizes.hidden * width


def _buffers(sizes: Sizes, settings: TrainSettings, width: int, trained: int, gathered: float) -> float:
    buckets = 4 * trained if settings.processes > 1 else 0
    largest = max(rows * columns for rows, columns in sizes.linears().values())
    multiplied = width * largest if settings.quantize_base == "nf4" else 0
    # FSDP gathers a layer while the one before it is still there.
    return buckets + multiplied + 2 * gathered


def kills_for_memory() -> int:
    """How often the kernel has killed a process of this container for want of memory; 0 where that is not told."""
    try:
        events = dict(line.split() for line in EVENTS.read_text().splitlines())
    except OSError:
        return 0
    return int(events.get("oom_kill", 0))
