"""The settings as transformers names them."""

import torch
from accelerate import DistributedType
from transformers import TrainingArguments

from chatmetrics.components.train.job import TrainingJob


def training_arguments(job: TrainingJob, precision: str) -> TrainingArguments:
    """The settings as transformers names them."""
    settings = job.settings
    has_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(job.checkpoints),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=1,  # an item of `Steps` is a whole step
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},  # the other kind wants gradients of frozen embeddings
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not has_gpu,
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=settings.checkpoint_steps,
        save_total_limit=settings.keep_checkpoints,
        seed=settings.seed,
        ddp_find_unused_parameters=False,
        fsdp=settings.fsdp or None,
        dataloader_num_workers=settings.workers or int(has_gpu),  # so that a GPU need not wait for the next packs
        dataloader_pin_memory=has_gpu,
        disable_tqdm=True,
        report_to="none",
    )
    if settings.fsdp:
        # Else accelerate, for which several processes without GPUs are another kind, would leave the weights whole.
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU
    return arguments
