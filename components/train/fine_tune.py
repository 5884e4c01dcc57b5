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
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase, PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from chatmetrics.components.errors import EXIT_INTERRUPTED, UserError
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.train.adapter import write_adapter
from chatmetrics.components.train.arguments import training_arguments
from chatmetrics.components.train.data.order import optimizer_steps
from chatmetrics.components.train.data.packing import attention_implementation
from chatmetrics.components.train.data.token_cache import tokenized
from chatmetrics.components.train.data.tokenization import load_tokenizer
from chatmetrics.components.train.estimate.memory import Memory, memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.job import FINISHED, TrainingJob
from chatmetrics.components.train.model.base import load_model, usable_precision, with_adapter
from chatmetrics.components.train.model.dev_questions import measure
from chatmetrics.components.train.model.early_stopping import EarlyStopping
from chatmetrics.components.train.model.nan_loss import NotANumber
from chatmetrics.components.train.model.stop_signal import StopAtSignal
from chatmetrics.components.train.model.trainer import AnswerTrainer, CheckTrees
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.divergence import LossWatch
from chatmetrics.components.train.watch.out_of_memory import saying_what_was_estimated
from chatmetrics.components.train.watch.progress_log import ProgressLog
from chatmetrics.components.train.watch.throughput import Counts, Speed
from chatmetrics.components.train.watch.trackers import reporters


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
    reports = reporters(job.settings, job.checkpoints)
    sizes = Sizes.of(json.loads((job.base_folder / "config.json").read_bytes()))
    memory = estimated(job.settings, sizes, precision)
    with saying_what_was_estimated(memory, lambda: "while the base is loaded"):
        model = load_model(job, precision)
    speed = Speed(counts := Counts(), sizes, precision)
    log = ProgressLog(job.checkpoints, speed)
    set_seed(job.settings.seed)  # of the adapter's first weights
    with early_stopping_of(job, tokenizer, speed) as early_stopping:
        trainer = AnswerTrainer(
            counts,
            speed,
            NotANumber(job.dataset, job.checkpoints, examples),
            early_stopping,
            model=with_adapter(model, job.settings),
            args=training_arguments(job, precision),
            train_dataset=optimizer_steps(job.settings, examples, sizes.attention_tokens, PartialState().num_processes),
            data_collator=lambda shares: shares[0],
            processing_class=tokenizer,
            callbacks=[*filter(None, [early_stopping]), log, LossWatch(), *reports, stop := StopAtSignal()],
        )
        trainer.remove_callback(PrinterCallback)
        if job.settings.packing and job.settings.fsdp:
            trainer.add_callback(CheckTrees())
        with disk_errors(job.checkpoints), saying_what_was_estimated(memory, trainer.doing):
            trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        raise SystemExit(EXIT_INTERRUPTED)
    write_adapter(job, trainer, log, early_stopping, {"precision": precision, "examples": len(examples)})
    if trainer.is_world_process_zero():
        job.leave_word(FINISHED)


@contextmanager
def early_stopping_of(
    job: TrainingJob, tokenizer: PreTrainedTokenizerBase, speed: Speed
) -> Iterator[EarlyStopping | None]:
    """What ends training early, as far as it had come; None where that was not asked for.

    Raises:
        InputError: there are no dev questions to go by, or they cannot be used.
        StorageError: their databases cannot be fetched.
    """
    if job.settings.early_stopping == "none":
        yield None
        return
    with measure(job.settings, job.dataset, tokenizer) as measured:
        early_stopping = EarlyStopping(job.settings, speed.paused()(measured))
        if job.resume_from:
            early_stopping.load(job.resume_from)
        yield early_stopping


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
        job.leave_word(type(error).__name__, str(error))
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
