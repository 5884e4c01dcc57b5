"""One training process, started by `accelerate launch -m chatmetrics.components.train.fine_tune JOB.json`."""

import os
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from peft import get_peft_model
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from chatmetrics.components.errors import TO_BE_CONTINUED, UserError
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.train.adapter import write_adapter
from chatmetrics.components.train.answer_trainer import AnswerTrainer, CheckTrees
from chatmetrics.components.train.arguments import training_arguments
from chatmetrics.components.train.job import FINISHED, TrainJob
from chatmetrics.components.train.model import load_model, lora_config, usable_precision
from chatmetrics.components.train.packing import packing
from chatmetrics.components.train.progress_log import ProgressLog
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.steps import Steps, by_length, in_runs
from chatmetrics.components.train.stopping import StopAtSignal
from chatmetrics.components.train.token_cache import TokenizedExamples, tokenized
from chatmetrics.components.train.tokenization import load_tokenizer
from chatmetrics.components.train.trees import Pack, Tokens


def fine_tune(job: TrainJob) -> None:
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
    model = load_model(job, precision)
    log = ProgressLog(job.checkpoints)
    set_seed(job.settings.seed)  # of the adapter's first weights
    trainer = AnswerTrainer(
        model=get_peft_model(model, lora_config(job.settings)),
        args=training_arguments(job, precision),
        train_dataset=optimizer_steps(job.settings, examples, packing(job.settings, model)),
        data_collator=lambda shares: shares[0],
        processing_class=tokenizer,
        callbacks=[log, stop := StopAtSignal()],
    )
    trainer.remove_callback(PrinterCallback)
    if job.settings.packing and job.settings.fsdp:
        trainer.add_callback(CheckTrees())
    with disk_errors(job.checkpoints):
        trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        raise SystemExit(TO_BE_CONTINUED)
    write_adapter(job, trainer, log, {"precision": precision, "examples": len(examples)})
    if trainer.is_world_process_zero():
        job.leave_word(FINISHED)


def optimizer_steps(
    settings: TrainSettings, examples: TokenizedExamples, pack: Callable[[list[Tokens]], list[Pack]]
) -> Steps:
    """The examples in steps of as many as the recipe says, whatever is computed at once."""
    processes = PartialState().num_processes
    if settings.group_by_length and not settings.packing:
        order = partial(by_length, examples.lengths, settings.examples_a_step)
    else:
        order = partial(in_runs, examples.groups, settings.questions_per_schema)
    return Steps(examples, settings.examples_a_step, processes, order, pack, settings.seed)


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
        job.leave_word(type(error).__name__, str(error))
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
