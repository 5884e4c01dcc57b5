"""One training process, started by `accelerate launch -m chatmetrics.components.train.fine_tune JOB.json`."""

import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from chatmetrics.components.console import info
from chatmetrics.components.errors import EXIT_INTERRUPTED, UserError
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.train.adapter import write_adapter
from chatmetrics.components.train.checkpoints.checksums import sealed_after
from chatmetrics.components.train.data.steps import StepShare, optimizer_steps
from chatmetrics.components.train.data.token_cache import tokenized
from chatmetrics.components.train.data.tokenization import load_tokenizer
from chatmetrics.components.train.estimate.memory import Memory, memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.job import FINISHED, TrainingJob
from chatmetrics.components.train.model.base import add_adapter, load_model
from chatmetrics.components.train.model.dev_questions import dev_metric
from chatmetrics.components.train.model.device import DeviceSettings, device_settings
from chatmetrics.components.train.model.early_stopping import EarlyStopping
from chatmetrics.components.train.model.nan_loss import NanLossReporter
from chatmetrics.components.train.model.stop_signal import StopAtSignal
from chatmetrics.components.train.model.timed_checkpoints import TimedCheckpoints
from chatmetrics.components.train.model.trainer import AnswerTrainer, CheckTraining
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.divergence import LossMonitor
from chatmetrics.components.train.watch.out_of_memory import explain_out_of_memory
from chatmetrics.components.train.watch.progress_log import ProgressLog
from chatmetrics.components.train.watch.throughput import ThroughputMeter, TrainingCounts
from chatmetrics.components.train.watch.trackers import tracker_callbacks


def fine_tune(job: TrainingJob) -> None:
    """Train the adapter of a job and write its folder.

    Raises:
        InputError: the examples or the base cannot be trained on.
        StorageError: a file could not be written.
        ServiceError: memory ran out after a checkpoint of this attempt.
        SystemExit: SIGTERM arrived; the run can be resumed.
    """
    # Adam's second moments of rarely used weights become denormal numbers, which processors compute very slowly.
    torch.set_flush_denormal(True)
    settings = job.settings
    PartialState()  # first of all: it gives each process its own GPU
    sizes = Sizes.of(json.loads((job.base_folder / "config.json").read_bytes()))
    device = device_settings(settings, sizes)
    if device.has_gpu:
        state, visible = PartialState(), os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        gpu = f"{state.device}, {torch.cuda.get_device_name()}"
        info(f"process {state.process_index} trains on {gpu}; CUDA_VISIBLE_DEVICES is {visible}")

    tokenizer = load_tokenizer(job.base_folder)
    with PartialState().main_process_first():  # the first process fills the cache, the others read it
        examples = tokenized(job.dataset, job.dataset_sha256, job.base_folder, tokenizer, settings.cutoff_length)
    trackers = tracker_callbacks(settings, job.checkpoints)

    memory = estimated_memory(settings, sizes, device)
    with explain_out_of_memory(memory, lambda: "while the base model is loaded"):
        model = load_model(job.base_folder, settings, device)
    set_seed(settings.seed)  # for the adapter's initial weights
    with explain_out_of_memory(memory, lambda: "while the base model is checked"):
        adapted = add_adapter(model, settings)

    arguments = training_arguments(job, device)
    # Only now, because CPU processes know of each other once TrainingArguments has connected them.
    steps = optimizer_steps(settings, examples, sizes.attention_tokens, PartialState().num_processes)

    counts = TrainingCounts()
    throughput = ThroughputMeter(counts, sizes, device.precision)
    log = ProgressLog(job.checkpoints, throughput)
    stop = StopAtSignal()
    with early_stopping_callback(job, tokenizer, throughput) as early_stopping:
        measuring = [early_stopping] if early_stopping else []
        trainer = AnswerTrainer(
            counts,
            throughput,
            NanLossReporter(job.dataset, job.checkpoints, examples),
            early_stopping,
            model=adapted,
            args=arguments,
            train_dataset=steps,
            data_collator=_only_share,
            processing_class=tokenizer,
            callbacks=[*measuring, log, LossMonitor(), *trackers, stop],
        )
        trainer.remove_callback(PrinterCallback)
        if settings.checkpoint_minutes:
            trainer.add_callback(TimedCheckpoints(settings.checkpoint_minutes))
        if settings.fsdp:
            trainer.add_callback(CheckTraining(settings))
        progress = partial(sealed_after, job.checkpoints, job.resume_from)
        with disk_errors(job.checkpoints), explain_out_of_memory(memory, trainer.doing, progress):
            trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)

    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        raise SystemExit(EXIT_INTERRUPTED)
    write_adapter(job, trainer, log, early_stopping, {"precision": device.precision, "examples": len(examples)})
    if trainer.is_world_process_zero():
        job.report_ending(FINISHED)


def estimated_memory(settings: TrainSettings, sizes: Sizes, device: DeviceSettings) -> Memory:
    """The memory that training is estimated to take on this device; an out-of-memory error reports it."""
    return memory_of(
        sizes,
        settings.model_copy(update={"precision": device.precision}),
        dense=device.attention != "flex_attention",
        shards=settings.processes if settings.fsdp else 1,
        gpu=device.has_gpu,
    )


@contextmanager
def early_stopping_callback(
    job: TrainingJob, tokenizer: PreTrainedTokenizerBase, throughput: ThroughputMeter
) -> Iterator[EarlyStopping | None]:
    """Yield the early stopping callback, with its state in the checkpoint to resume from; None if it is disabled.

    Raises:
        InputError: there are no dev questions, or they cannot be used.
        StorageError: their databases cannot be fetched.
    """
    if job.settings.early_stopping == "none":
        yield None
        return
    with dev_metric(job.settings, job.dataset, tokenizer) as measure:
        early_stopping = EarlyStopping(job.settings, throughput.paused()(measure))
        if job.resume_from:
            early_stopping.load(job.resume_from)
        yield early_stopping


def training_arguments(job: TrainingJob, device: DeviceSettings) -> TrainingArguments:
    """The settings as transformers names them."""
    settings = job.settings
    arguments = TrainingArguments(
        output_dir=str(job.checkpoints),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=1,  # an item of `OptimizerSteps` is a whole step
        train_sampling_strategy="sequential",  # `OptimizerSteps` has its own order
        remove_unused_columns=False,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        # Reentrant checkpointing needs gradients of the embeddings, which are frozen.
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=device.precision == "bf16",
        fp16=device.precision == "fp16",
        use_cpu=not device.has_gpu,
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=settings.checkpoint_steps,
        save_total_limit=settings.keep_checkpoints,
        seed=settings.seed,
        ddp_find_unused_parameters=False,
        fsdp=settings.fsdp or None,
        dataloader_num_workers=settings.workers or int(device.has_gpu),  # so that a GPU does not wait for packs
        dataloader_pin_memory=device.has_gpu,
        disable_tqdm=True,
        report_to="none",
    )
    # This process has one GPU, even if it sees others. With more, Trainer would batch several steps, of which one is
    # kept, and DataParallel would cut each pack's tensors into parts that do not belong together.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if settings.fsdp:
        # Otherwise accelerate, which calls several CPU processes another type, would not shard the weights.
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU
    return arguments


def _only_share(shares: list[StepShare]) -> StepShare:
    """Collate a batch of one item, as `per_device_train_batch_size` sets it."""
    return shares[0]


def _end_with_launcher() -> None:
    def watch() -> None:
        os.read(0, 1)  # not sys.stdin, which the interpreter cannot close while a thread reads it
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the job in the file named on the command line; an error is written to a file for the launcher to raise."""
    job = TrainingJob.model_validate_json(Path(sys.argv[1]).read_bytes())
    if job.ends_with_launcher:
        _end_with_launcher()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # Deprecation warnings about names that other libraries still use.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        fine_tune(job)
    except UserError as error:
        job.report_ending(type(error).__name__, str(error))
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
