"""What this device computes with: precision, dtype and attention, resolved once from the settings."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.utils import is_flash_attn_2_available

from chatmetrics.components.console import note
from chatmetrics.components.errors import InputError
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.model.answer_loss import tree_mask
from chatmetrics.components.train.settings import FLEX_CAPABILITY, TrainSettings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
# Tokens of the tree that FlexAttention is tried on: more than 128, below which it uses another kernel, for decoding.
PROBE_TOKENS = 400
SMALL = Sizes(
    layers=1, hidden=256, intermediate=512, heads=4, key_value_heads=2, head_width=64, vocabulary=1000, tied=True
)


@dataclass(frozen=True)
class DeviceSettings:
    """How this device computes.

    Attributes:
        has_gpu: whether the device is a GPU.
        precision: bf16, fp16 or fp32.
        attention: name of the attention implementation, as transformers knows it.
    """

    has_gpu: bool
    precision: str
    attention: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the base's weights."""
        return DTYPES[self.precision]


def device_settings(settings: TrainSettings, sizes: Sizes | None = None) -> DeviceSettings:
    """Resolve the settings for the device that this process trains on. All training processes must call it.

    Args:
        settings: the recipe's `train` section.
        sizes: the base's sizes, to try FlexAttention with its heads; None: with small ones.

    Raises:
        InputError: the attention implementation in the settings cannot be used.
    """
    precision = usable_precision(settings)
    return DeviceSettings(
        has_gpu=torch.cuda.is_available(),
        precision=precision,
        attention=attention_implementation(settings, sizes, DTYPES[precision]),
    )


def usable_precision(settings: TrainSettings) -> str:
    """The precision in the settings, or the next best that the device can train in, with a note."""
    precision = settings.precision
    usable = "fp32"
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        usable = "fp16" if precision == "bf16" and not bf16 else precision
    elif precision == "bf16" and _cpu_multiplies_bf16():
        usable = "bf16"
    if usable != precision:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        note(f"the {device} cannot train in {precision}, so it trains in {usable}")
    return usable


def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU multiplies matrices in bf16: four times as fast as in fp32. Emulated, bf16 is slower."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BF16_INSTRUCTIONS)


def attention_implementation(
    settings: TrainSettings, sizes: Sizes | None = None, dtype: torch.dtype = torch.float32
) -> str:
    """The attention implementation in the settings or, with `auto`, the best for the packs on this device.

    All training processes must call it, and all get the same answer. FlexAttention is chosen only if each of them can
    compile it.

    Raises:
        InputError: the implementation would ignore the mask of a tree, or is not available on this machine.
    """
    chosen = settings.attention
    if chosen == "flash_attention_2" and settings.packing:
        raise InputError(
            f"attention {chosen} ignores the mask of a tree, so that the examples of a pack would see each other; "
            "set train.attention to auto, or train.packing to false"
        )
    if chosen == "flash_attention_2" and not is_flash_attn_2_available():
        raise InputError(f"attention {chosen} is not available on this machine; set train.attention to auto")
    if chosen == "flex_attention" or (chosen == "auto" and settings.packing):
        reason = _why_not_flex(sizes or SMALL, dtype)
        if reason and chosen == "flex_attention":
            raise InputError(f"attention {chosen} is not available on this machine ({reason}); set it to auto")
        return "sdpa" if reason else "flex_attention"
    return "sdpa" if chosen == "auto" else chosen


def _why_not_flex(sizes: Sizes, dtype: torch.dtype) -> str:
    """Why one of the training processes cannot use FlexAttention; "" if all can.

    A GPU that should be able to, but cannot compile it, is reported in a note: SDPA is slower.
    """
    expected = "" if _capability() >= FLEX_CAPABILITY else f"it needs a GPU with compute capability {FLEX_CAPABILITY}"
    failure = "" if expected else flex_failure(sizes, dtype, PartialState().device)
    if failure:
        note(f"FlexAttention cannot be compiled here, and SDPA takes its place: {failure}")
    own = expected or failure
    return own if PartialState().num_processes == 1 else next(filter(None, gather_object([own])), "")


def flex_failure(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> str:
    """Compile FlexAttention and compute a small tree with it, forward and backward; return why that fails, or "".

    Triton compiles C for its interface to the driver, so that a machine may have everything but a compiler; heads may
    be too wide for the GPU's shared memory; and torch may lack what this GPU needs.
    """
    ends = torch.full((1, PROBE_TOKENS), PROBE_TOKENS, device=device)
    ends[0, PROBE_TOKENS // 4 : PROBE_TOKENS // 2] = PROBE_TOKENS // 2
    queries, keys, values = (
        torch.randn(1, heads, PROBE_TOKENS, sizes.head_width, device=device, dtype=dtype, requires_grad=True)
        for heads in (sizes.heads, sizes.key_value_heads, sizes.key_value_heads)
    )
    module = SimpleNamespace(training=True)
    try:
        mask = tree_mask(ends, "flex_attention", dtype)
        output, _ = flex_attention_forward(module, queries, keys, values, mask)  # type: ignore[arg-type]
        gradients = torch.autograd.grad(output.sum(), (queries, keys, values))
    except Exception as error:  # noqa: BLE001  # a compiler behind several libraries: any error is a reason not to use it
        return _innermost(error)
    return "" if all(bool(gradient.isfinite().all()) for gradient in gradients) else "its gradients are not finite"


def _innermost(error: BaseException) -> str:
    """The first line of the error that caused the others, which compilers wrap in their own."""
    while error.__cause__:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _capability() -> float:
    """The compute capability of this process's GPU, or 0 without one."""
    if not torch.cuda.is_available():
        return 0.0
    major, minor = torch.cuda.get_device_capability()
    return major + minor / 10
