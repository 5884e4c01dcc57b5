"""Loads the base model for training and puts the adapter on it."""

from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, BitsAndBytesConfig, PreTrainedModel

from chatmetrics.components.base_model.loading import load_complete
from chatmetrics.components.console import note
from chatmetrics.components.errors import InputError
from chatmetrics.components.train.model.answer_loss import give_answer_loss
from chatmetrics.components.train.model.device import DeviceSettings
from chatmetrics.components.train.model.own_forward import check_training
from chatmetrics.components.train.model.saved_activations import reduce_saved_activations
from chatmetrics.components.train.settings import TrainSettings


def load_model(base_folder: Path, settings: TrainSettings, device_settings: DeviceSettings) -> PreTrainedModel:
    """Load the base model; its forward returns the losses of answer tokens.

    Raises:
        InputError: weights are to be stored in 4 bits, which is not available on the device.
    """
    device = PartialState().device
    model = load_complete(
        base_folder,
        dtype=device_settings.dtype,
        attn_implementation=_supported_attention(base_folder, device_settings.attention),
        quantization_config=_in_4_bits(device, device_settings.dtype) if settings.quantize_base == "nf4" else None,
    )
    for module in model.modules():
        # Otherwise, on some CPUs, bitsandbytes rearranges 4-bit weights at the first forward pass without gradients,
        # permanently, and the result computed from rearranged weights has no gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    give_answer_loss(model)
    return model


def _supported_attention(base_folder: Path, chosen: str) -> str:
    """The chosen implementation of attention, or another one, with a note, if the base's class does not have it."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(AutoConfig.from_pretrained(base_folder)), None)
    supports = {"sdpa": "_supports_sdpa", "flex_attention": "_supports_flex_attn"}
    for attention in dict.fromkeys([chosen, "sdpa"]):
        if kind is None or getattr(kind, supports.get(attention, ""), True):
            break
    else:
        attention = "eager"
    if attention != chosen:
        note(f"{kind.__name__} does not support {chosen} attention, so it trains with {attention} attention")
    return attention


def _in_4_bits(device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's quantization of the layers' weights (arXiv 2305.14314): NF4, with 8-bit scales.

    Embeddings, norms and head keep `dtype`, and everything is computed in it.
    """
    try:
        from bitsandbytes.functional import quantize_4bit

        quantize_4bit(torch.ones(64, device=device), quant_type="nf4", compress_statistics=True)
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"quantize_base nf4 is not available on this machine's {device.type} ({reason}); "
            "set train.quantize_base to none"
        ) from error
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def add_adapter(model: PreTrainedModel, settings: TrainSettings) -> PeftModel:
    """Put a new adapter on the base model; only its weights are trained.

    Raises:
        InputError: losses or gradients are not those of the model's own forward pass; see `check_training`.
    """
    adapted = get_peft_model(model, lora_config(settings))
    reduce_saved_activations(adapted)
    if not settings.fsdp:  # else once the weights have been sharded
        check_training(adapted.to(PartialState().device), settings)
    return adapted


def lora_config(settings: TrainSettings) -> LoraConfig:
    """The adapter's settings as PEFT names them."""
    targets = settings.lora_targets
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
