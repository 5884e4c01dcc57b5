"""What this device computes with: precision, dtype and attention, resolved once from the settings."""

from dataclasses import dataclass

import torch
from transformers.utils import is_flash_attn_2_available

from chatmetrics.components.console import note
from chatmetrics.components.errors import InputError
from chatmetrics.components.train.settings import FLEX_CAPABILITY, TrainSettings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


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


def device_settings(settings: TrainSettings) -> DeviceSettings:
    """Resolve the settings for the device that this process trains on.

    Raises:
        InputError: the attention implementation in the settings cannot be used.
    """
    return DeviceSettings(
        has_gpu=torch.cuda.is_available(),
        precision=usable_precision(settings),
        attention=attention_implementation(settings),
    )


def usable_precision(settings: TrainSettings) -> str:
    """The precision in the settings, or the next best that the device can train in, with a note."""
    precision = settings.precision
    usable = "fp32"
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        usable = "fp16" if precision == "bf16" and not bf16 else precision
    if usable != precision:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        note(f"the {device} cannot train in {precision}, so it trains in {usable}")
    return usable


def attention_implementation(settings: TrainSettings) -> str:
    """The attention implementation in the settings or, with `auto`, the best for the packs on this device.

    Raises:
        InputError: the implementation would ignore the mask of a tree, or is not available on this machine.
    """
    chosen = settings.attention
    can_compile_flex = torch.cuda.is_available() and _capability() >= FLEX_CAPABILITY
    if chosen == "auto":
        return "flex_attention" if settings.packing and can_compile_flex else "sdpa"
    if chosen == "flash_attention_2" and settings.packing:
        raise InputError(
            f"attention {chosen} ignores the mask of a tree, so that the examples of a pack would see each other; "
            "set train.attention to auto, or train.packing to false"
        )
    missing_flash = chosen == "flash_attention_2" and not is_flash_attn_2_available()
    missing_flex = chosen == "flex_attention" and not can_compile_flex
    if missing_flash or missing_flex:
        raise InputError(f"attention {chosen} is not available on this machine; set train.attention to auto")
    return chosen


def _capability() -> float:
    major, minor = torch.cuda.get_device_capability()
    return major + minor / 10
