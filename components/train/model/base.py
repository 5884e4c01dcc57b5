"""The base as it is trained: in what precision, with what attention, and the adapter that is put on it."""

import sys

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.data.packing import attention_implementation
from chatmetrics.components.train.job import TrainingJob
from chatmetrics.components.train.model.answer_loss import check_trees, give_answer_loss
from chatmetrics.components.train.model.saved_activations import reduce_saved_activations
from chatmetrics.components.train.settings import TrainSettings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_model(job: TrainingJob, precision: str) -> PreTrainedModel:
    """The base, whose forward gives the loss of answers.

    Raises:
        InputError: examples are to be packed, and it would not keep those of a pack apart; or its weights are to be in
            4 bits, and the device has no such thing.
    """
    device = PartialState().device
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        job.base_folder,
        dtype=DTYPES[precision],
        attn_implementation=attention_implementation(job.settings),
        quantization_config=_in_4_bits(precision, device) if job.settings.quantize_base == "nf4" else None,
    )
    for module in model.modules():
        # Else bitsandbytes rearranges 4-bit weights on some CPUs as soon as the model is tried, for good, and what it
        # computes with those has no gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    give_answer_loss(model)
    if job.settings.packing and not job.settings.fsdp:
        check_trees(model.to(device))
    return model


def _in_4_bits(precision: str, device: torch.device) -> BitsAndBytesConfig:
    """The layers' weights as QLoRA has them (arXiv 2305.14314): NF4, with scales that are in 8 bits themselves.

    Embeddings, norms and head stay in the precision, and all is computed in it.
    """
    try:
        from bitsandbytes.functional import quantize_4bit

        quantize_4bit(torch.ones(64, device=device), quant_type="nf4", compress_statistics=True)
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"quantize_base nf4 is not to be had with this machine's {device.type} ({reason}); "
            "set train.quantize_base to none"
        ) from error
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[precision],
    )


def add_adapter(model: PreTrainedModel, settings: TrainSettings) -> PeftModel:
    """The base with a new adapter on it, of which alone the weights are trained."""
    adapted = get_peft_model(model, lora_config(settings))
    reduce_saved_activations(adapted)
    return adapted


def usable_precision(settings: TrainSettings) -> str:
    """The precision asked for, or the next best that the device computes in, which is said."""
    precision = settings.precision
    usable = "fp32"
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        usable = "fp16" if precision == "bf16" and not bf16 else precision
    if usable != precision:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(f"note: the {device} cannot train in {precision}, so it trains in {usable}", file=sys.stderr, flush=True)
    return usable


def lora_config(settings: TrainSettings) -> LoraConfig:
    """The adapter's shape."""
    targets = settings.lora_targets
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
