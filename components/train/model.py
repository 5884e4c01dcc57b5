"""The base as it is trained: in what precision, with what attention, and the adapter that is put on it."""

import sys

import torch
from accelerate import PartialState
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PreTrainedModel

from chatmetrics.components.train.answer_loss import check_trees, give_answer_loss
from chatmetrics.components.train.job import TrainJob
from chatmetrics.components.train.packing import attention_implementation
from chatmetrics.components.train.settings import TrainSettings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_model(job: TrainJob, precision: str) -> PreTrainedModel:
    """The base, whose forward gives the loss of answers.

    Raises:
        InputError: examples are to be packed, and it would not keep those of a pack apart.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        job.base_folder, dtype=DTYPES[precision], attn_implementation=attention_implementation(job.settings)
    )
    give_answer_loss(model)
    if job.settings.packing and not job.settings.fsdp:
        check_trees(model.to(PartialState().device))
    return model


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
