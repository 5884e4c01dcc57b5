"""Estimates the memory that training an adapter takes of a device, from the base's config.json and the settings.

The estimate is a sum of the tensors that exist at the moment when most exist; no factor in it is fitted. It needs no
torch. It holds for decoders like Llama's (Qwen2 and 3, Mistral and others): RMSNorm, rotary positions, a gated MLP.

    bytes
      ^                 ______                 peak: all parts but the smaller of `logits` and `layer`,
      |                /      |\\              which do not exist at the same time
      |               /logits | \\ layer
      |              /________|  \\__
      |   activations /           \\ released layer by layer
      |__________/____________________\\______
      |  weights, adapter, optimizer, mask, buffers, overhead: all the time
      +-------------------------------------------> time
         forward pass     loss    backward pass
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from chatmetrics.components.train.estimate.sizes import NF4_BYTES, Sizes
from chatmetrics.components.train.settings import TrainSettings

GIB = 2**30
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# Logits that the loss computes at once (128 MiB in fp32); see answer_loss.py.
LOGITS_AT_ONCE = 2**25
# An allowance for a GPU's context, the workspaces of cuBLAS, and memory that torch's allocator holds but cannot use.
GPU_OVERHEAD = GIB


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part.

    Attributes:
        weights: the base's weights.
        adapter: the adapter's weights in fp32, their gradients and, in half precision, their half-precision copies.
        optimizer: AdamW's two moments in fp32.
        activations: tensors that the forward pass saves for the backward pass.
        mask: the attention mask of a tree, if attention takes a dense one.
        buffers: DDP's gradient buckets, FSDP's gathered layers, or a 4-bit weight that is dequantized for use.
        logits: tensors of the loss while it is computed.
        layer: tensors of the backward pass of one layer; with gradient checkpointing that layer's activations too.
        overhead: memory of a GPU that is not in tensors.
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
        """The peak in bytes. The logits are freed before the backward pass reaches a layer."""
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
    """Estimate the memory of one training process.

    Args:
        sizes: the base's sizes.
        settings: the recipe's `train` section, with the precision that the device computes in.
        tokens: tokens of the largest pack or padded batch; 0: the maximum that the settings allow.
        answers: answer tokens among them; 0: all of them.
        dense: whether attention takes a tree's mask as a dense tensor, as SDPA does and FlexAttention does not.
        shards: number of devices that share the base's weights (FSDP).
        gpu: whether the device is a GPU.
    """
    width = BYTES[settings.precision]
    tokens = tokens or max_tokens(settings)
    dense &= settings.packing
    adapted = {name: shape for name, shape in sizes.linears().items() if _is_adapted(name, settings)}
    trained = sizes.layers * settings.lora_rank * sum(map(sum, adapted.values()))  # weights of the adapter
    repeated = dense or (settings.packing and sizes.repeats_keys)
    of_layer = tokens * _saved_per_layer(sizes, settings, width, adapted, repeated=repeated)
    mlp = tokens * _backward_of_mlp(sizes, settings, width)
    last_norm = tokens * 4 * 5 * sizes.hidden  # five gradients and products in fp32
    checkpointing = settings.gradient_checkpointing
    # Checkpointing saves the input of each layer. The last norm's input is saved in fp32; the first layer's is not
    # saved, because it needs no gradient.
    saved = tokens * sizes.hidden * (sizes.layers * width + 4) if checkpointing else sizes.layers * of_layer
    layer_weights = _layer_weights(sizes, settings, width)
    weights = sizes.layers * layer_weights + sizes.outside_layers * width
    return Memory(
        weights=weights / shards,
        adapter=trained * (8 if width == 4 else 8 + width),
        optimizer=trained * 8,
        activations=saved,
        mask=tokens**2 * width if dense else 0,
        buffers=_buffers(sizes, settings, width, trained, layer_weights if shards > 1 else 0),
        logits=_logits(sizes, width, tokens, answers or tokens),
        layer=of_layer + mlp if checkpointing else max(mlp, last_norm),
        overhead=GPU_OVERHEAD if gpu else 0,
    )


def max_tokens(settings: TrainSettings) -> int:
    """The maximum number of tokens that a device may have to compute at once, padding included."""
    if settings.packing and settings.pack_tokens:
        return max(settings.pack_tokens, settings.cutoff_length)  # an example is never cut
    return settings.batch_size * settings.cutoff_length


def _is_adapted(name: str, settings: TrainSettings) -> bool:
    targets = settings.lora_targets
    return isinstance(targets, str) or any(target.split(".")[-1] == name for target in targets)


def _layer_weights(sizes: Sizes, settings: TrainSettings, width: int) -> float:
    return sizes.layer_weights * (NF4_BYTES if settings.quantize_base == "nf4" else width)


def _saved_per_layer(
    sizes: Sizes, settings: TrainSettings, width: int, adapted: Mapping[str, tuple[int, int]], *, repeated: bool
) -> int:
    """Bytes per token that a layer saves for its backward pass.

    Args:
        repeated: whether attention takes keys and values repeated for every query head.
    """
    norms = 2 * 4 * (sizes.hidden + 1)  # both norms' inputs and root mean squares, in fp32
    # Queries, keys, values and the result, which is o_proj's input too, and one fp32 number per head.
    attention = width * 2 * (sizes.queries + (sizes.queries if repeated else sizes.keys)) + 4 * sizes.heads
    mlp = width * 2 * sizes.intermediate  # the gate and its factor, see saved_activations.py
    inputs = _saved_adapter_inputs(sizes, settings, width, adapted)
    return norms + attention + mlp + inputs + width * settings.lora_rank * len(adapted)


def _saved_adapter_inputs(
    sizes: Sizes, settings: TrainSettings, width: int, adapted: Mapping[str, tuple[int, int]]
) -> int:
    """Bytes per token of the inputs that the adapters of a layer save."""
    if settings.lora_dropout:
        # Each adapter saves its own input after dropout, and the dropout mask: a GPU's in bytes, a CPU's, which
        # computes in fp32, as numbers.
        return (width + (4 if width == 4 else 1)) * sum(rows for rows, _ in adapted.values())
    # Without dropout, modules with the same input share it.
    attention_input = bool(adapted.keys() & {"q_proj", "k_proj", "v_proj"})
    mlp_input = bool(adapted.keys() & {"gate_proj", "up_proj"})
    down_input = "down_proj" in adapted
    return width * (sizes.hidden * (attention_input + mlp_input) + sizes.intermediate * down_input)


def _backward_of_mlp(sizes: Sizes, settings: TrainSettings, width: int) -> int:
    """Bytes per token that the backward pass of an MLP takes in addition to the saved ones, at the layer's peak.

    They are the gradient of the MLP's output, and two gradients of down_proj's input: the base's and the adapter's.
    """
    # With dropout PEFT makes the adapter's input fp32.
    in_fp32 = 4 * 2 * sizes.intermediate if settings.lora_dropout and width < 4 else 0
    return width * (2 * sizes.intermediate + sizes.hidden) + in_fp32


def _logits(sizes: Sizes, width: int, tokens: int, answers: int) -> int:
    """Bytes of the logits' softmax and two gradients, all in fp32, and of the gradient of all hidden states."""
    at_once = min(answers, max(1, LOGITS_AT_ONCE // sizes.vocabulary))
    return 3 * 4 * at_once * sizes.vocabulary + tokens * sizes.hidden * width


def _buffers(sizes: Sizes, settings: TrainSettings, width: int, trained: int, gathered: float) -> float:
    buckets = 4 * trained if settings.processes > 1 else 0
    largest = max(rows * columns for rows, columns in sizes.linears().values())
    dequantized = width * largest if settings.quantize_base == "nf4" else 0
    # FSDP gathers a layer while the previous one still exists.
    return buckets + dequantized + 2 * gathered
