"""One training process, started by `accelerate launch -m chatmetrics.components.train.fine_tune JOB.json`."""

import importlib.metadata
import json
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, PrinterCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from chatmetrics.components.errors import ServiceError, UserError
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.storage.folder import atomic_folder
from chatmetrics.components.train.answer_loss import check_trees, give_answer_loss
from chatmetrics.components.train.answer_trainer import AnswerTrainer, StopAtSignal
from chatmetrics.components.train.checkpoints import newest_complete
from chatmetrics.components.train.job import TrainJob
from chatmetrics.components.train.loss_curve import Point, write_loss_curve
from chatmetrics.components.train.packing import attention_implementation, packing
from chatmetrics.components.train.progress_log import PROGRESS_FILE, ProgressLog
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.steps import Steps, by_length, in_runs
from chatmetrics.components.train.token_cache import TokenizedExamples, tokenized
from chatmetrics.components.train.tokenization import load_tokenizer
from chatmetrics.components.train.trees import Pack, Tokens

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers")


def fine_tune(job: TrainJob) -> None:
    """Train the adapter of a job and put it in place.

    Raises:
        InputError: the examples or the base cannot be trained on.
        ServiceError: training stopped before its last step.
        StorageError: the disk refused.
    """
    # Adam's second moments of rarely used weights become denormal numbers, which processors compute very slowly.
    torch.set_flush_denormal(True)
    tokenizer = load_tokenizer(job.base_folder)
    with PartialState().main_process_first():
        examples = tokenized(job.dataset, job.dataset_sha256, job.base_folder, tokenizer, job.settings.cutoff_length)
    precision = usable_precision(job.settings)
    model = load_model(job, precision)
    log = ProgressLog(job.checkpoints)
    set_seed(job.settings.seed)  # of the adapter's first weights
    trainer = AnswerTrainer(
        model=get_peft_model(model, lora_config(job.settings)),
        args=training_arguments(job, precision),
        train_dataset=optimizer_steps(job.settings, examples, packing(job.settings, model)),
        data_collator=lambda shares: shares[0],
        processing_class=tokenizer,
        callbacks=[log, StopAtSignal()],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = newest_complete(job.checkpoints)
    if checkpoint:
        print(f"note: going on from {checkpoint}", file=sys.stderr, flush=True)
    with disk_errors(job.checkpoints):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < trainer.state.max_steps:
        raise ServiceError(f"training stopped at step {trainer.state.global_step} of {trainer.state.max_steps}")
    if trainer.is_world_process_zero():
        _write_adapter(job, trainer, log, {"precision": precision, "examples": len(examples)})


def load_model(job: TrainJob, precision: str) -> PreTrainedModel:
    """The base, whose forward gives the loss of answers.

    Raises:
        InputError: examples are to be packed, and it would not keep those of a pack apart.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        job.base_folder, dtype=DTYPES[precision], attn_implementation=attention_implementation(job.settings)
    )
    give_answer_loss(model)
    if job.settings.packing:
        check_trees(model.to(PartialState().device))
    return model


def optimizer_steps(
    settings: TrainSettings, examples: TokenizedExamples, pack: Callable[[list[Tokens]], list[Pack]]
) -> Steps:
    """The examples in steps of as many as the recipe says, whatever is computed at once."""
    processes = PartialState().num_processes
    examples_a_step = settings.batch_size * settings.gradient_accumulation * processes
    if settings.group_by_length and not settings.packing:
        order = partial(by_length, examples.lengths, examples_a_step)
    else:
        order = partial(in_runs, examples.groups, settings.questions_per_schema)
    return Steps(examples, examples_a_step, processes, order, pack, settings.seed)


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


def training_arguments(job: TrainJob, precision: str) -> TrainingArguments:
    """The settings as transformers names them."""
    settings = job.settings
    has_gpu = torch.cuda.is_available()
    return TrainingArguments(
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
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=has_gpu,
        disable_tqdm=True,
        report_to="none",
    )


def _write_adapter(job: TrainJob, trainer: AnswerTrainer, log: ProgressLog, facts: dict[str, Any]) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    # The path that the base has on this machine means nothing elsewhere.
    model.peft_config["default"].base_model_name_or_path = job.base_model
    with atomic_folder(job.output) as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        shutil.copy(job.checkpoints / PROGRESS_FILE, folder)
        write_loss_curve([Point(step=record["step"], loss=record["loss"]) for record in log.records()], folder)
        run = _describe(job, trainer, log) | facts
        (folder / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False), encoding="utf-8")


def _describe(job: TrainJob, trainer: AnswerTrainer, log: ProgressLog) -> dict[str, Any]:
    return {
        "base_model": job.base_model,
        "base_fingerprint": job.base_fingerprint,
        "dataset_sha256": job.dataset_sha256,
        "settings": job.settings.model_dump(mode="json"),
        "steps": trainer.state.global_step,
        "loss": log.records()[-1]["loss"],
        "seconds": round(log.seconds, 1),
        "tokens": log.tokens,
        "computed_tokens": log.computed_tokens,
        "attention": trainer.model.config._attn_implementation,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "processes": trainer.accelerator.num_processes,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _end_with_launcher() -> None:
    def watch() -> None:
        os.read(0, 1)  # not sys.stdin, which the interpreter cannot close while a thread reads it
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Do the job that the file named on the command line describes; a failure is left for the launcher to raise."""
    job = TrainJob.model_validate_json(Path(sys.argv[1]).read_bytes())
    if job.ends_with_launcher:
        _end_with_launcher()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # They are about names that the other libraries still use.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        fine_tune(job)
    except UserError as error:
        failure = {"kind": type(error).__name__, "message": str(error)}
        job.failure.write_text(json.dumps(failure), encoding="utf-8")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
