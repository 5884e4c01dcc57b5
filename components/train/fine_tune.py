"""One training process, started by `accelerate launch -m chatmetrics.components.train.fine_tune JOB.json`."""

import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from chatmetrics.components.errors import TO_BE_CONTINUED, UserError
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.train.adapter import write_adapter
from chatmetrics.components.train.data.packing import attention_implementation
from chatmetrics.components.train.data.steps import optimizer_steps
from chatmetrics.components.train.data.token_cache import tokenized
from chatmetrics.components.train.data.tokenization import load_tokenizer
from chatmetrics.components.train.estimate.memory import Memory, memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.job import FINISHED, TrainingJob
from chatmetrics.components.train.model.base import add_adapter, load_model, usable_precision
from chatmetrics.components.train.model.dev_questions import dev_metric
from chatmetrics.components.train.model.early_stopping import EarlyStopping
from chatmetrics.components.train.model.nan_loss import NanLossReporter
from chatmetrics.components.train.model.stop_signal import StopAtSignal
from chatmetrics.components.train.model.trainer import AnswerTrainer, CheckTrees
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.divergence import LossMonitor
from chatmetrics.components.train.watch.out_of_memory import explain_out_of_memory
from chatmetrics.components.train.watch.progress_log import ProgressLog
from chatmetrics.components.train.watch.throughput import ThroughputMeter, TrainingCounts
from chatmetrics.components.train.watch.trackers import tracker_callbacks


def fine_tune(job: TrainingJob) -> None:
    """Train the adapter of a job and put it in place.

    Raises:
        InputError: the examples or the base cannot be trained on.
        StorageError: the disk refused.
        SystemExit: SIGTERM came; training goes on from a checkpoint when it is started again.
    """
    # Adam's second moments of rarely used weights become denormal numbers, which processors compute very slowly.
    torch.set_flush_denormal(True)
    tokenizer = load_tokenizer(job.base_folder)
    with PartialState().main_process_first():
        examples = tokenized(job.dataset, job.dataset_sha256, job.base_folder, tokenizer, job.settings.cutoff_length)
    precision = usable_precision(job.settings)
    reports = tracker_callbacks(job.settings, job.checkpoints)
    sizes = Sizes.of(json.loads((job.base_folder / "config.json").read_bytes()))
    memory = estimated(job.settings, sizes, precision)
    with explain_out_of_memory(memory, lambda: "while the base is loaded"):
        model = load_model(job, precision)
    speed = ThroughputMeter(counts := TrainingCounts(), sizes, precision)
    log = ProgressLog(job.checkpoints, speed)
    set_seed(job.settings.seed)  # of the adapter's first weights
    with early_stopping_of(job, tokenizer, speed) as early_stopping:
        trainer = AnswerTrainer(
            counts,
            speed,
            NanLossReporter(job.dataset, job.checkpoints, examples),
            early_stopping,
            model=add_adapter(model, job.settings),
            args=training_arguments(job, precision),
            train_dataset=optimizer_steps(job.settings, examples, sizes.attention_tokens, PartialState().num_processes),
            data_collator=lambda shares: shares[0],
            processing_class=tokenizer,
            callbacks=[*filter(None, [early_stopping]), log, LossMonitor(), *reports, stop := StopAtSignal()],
        )
        trainer.remove_callback(PrinterCallback)
        if job.settings.packing and job.settings.fsdp:
            trainer.add_callback(CheckTrees())
        with disk_errors(job.checkpoints), explain_out_of_memory(memory, trainer.doing):
            trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        raise SystemExit(TO_BE_CONTINUED)
    write_adapter(job, trainer, log, early_stopping, {"precision": precision, "examples": len(examples)})
    if trainer.is_world_process_zero():
        job.report_ending(FINISHED)


@contextmanager
def early_stopping_of(
    job: TrainingJob, tokenizer: PreTrainedTokenizerBase, speed: ThroughputMeter
) -> Iterator[EarlyStopping | None]:
    """What ends training early, as far as it had come; None where that was not asked for.

    Raises:
        InputError: there are no dev questions to go by, or they cannot be used.
        StorageError: their databases cannot be fetched.
    """
    if job.settings.early_stopping == "none":
        yield None
        return
    with dev_metric(job.settings, job.dataset, tokenizer) as measured:
        early_stopping = EarlyStopping(job.settings, speed.paused()(measured))
        if job.resume_from:
            early_stopping.load(job.resume_from)
        yield early_stopping


def training_arguments(job: TrainingJob, precision: str) -> TrainingArguments:
    """The settings as transformers names them."""
    settings = job.settings
    has_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(job.checkpoints),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=1,  # an item of `OptimizerSteps` is a whole step
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


def estimated(settings: TrainSettings, sizes: Sizes, precision: str) -> Memory:
    """What training is thought to take on this device, to compare with what it takes."""
    settings = settings.model_copy(update={"precision": precision})
    dense = attention_implementation(settings) != "flex_attention"
    shards = settings.processes if settings.fsdp else 1
    return memory_of(sizes, settings, dense=dense, shards=shards, gpu=torch.cuda.is_available())


def _end_with_launcher() -> None:
    def watch() -> None:
        os.read(0, 1)  # not sys.stdin, which the interpreter cannot close while a thread reads it
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Do the job that the file named on the command line describes; a failure is left for the launcher to raise."""
    job = TrainingJob.model_validate_json(Path(sys.argv[1]).read_bytes())
    if job.ends_with_launcher:
        _end_with_launcher()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # They are about names that the other libraries still use.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        fine_tune(job)
    except UserError as error:
        job.report_ending(type(error).__name__, str(error))
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
