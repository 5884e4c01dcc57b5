"""Writes the adapter folder: the adapter, its loss curve and its run record."""

import importlib.metadata
import json
import shutil
from typing import Any

import torch

from chatmetrics.components.nl2sql.prompts.template import dataset_template
from chatmetrics.components.storage.folder import atomic_folder
from chatmetrics.components.train.job import TrainingJob
from chatmetrics.components.train.model.dev_questions import dev_questions
from chatmetrics.components.train.model.early_stopping import EarlyStopping
from chatmetrics.components.train.model.trainer import AnswerTrainer
from chatmetrics.components.train.watch.divergence import loss_warnings
from chatmetrics.components.train.watch.loss_curve import DevPoint, LossPoint, write_loss_curve
from chatmetrics.components.train.watch.progress_log import PROGRESS_FILE, ProgressLog
from chatmetrics.components.train.watch.trackers import TENSORBOARD

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers")


def write_adapter(
    job: TrainingJob,
    trainer: AnswerTrainer,
    log: ProgressLog,
    early_stopping: EarlyStopping | None,
    facts: dict[str, Any],
) -> None:
    """Write the adapter folder, which appears complete or not at all. All processes must call it.

    With early stopping the adapter is the best one measured.

    Args:
        job: the job.
        trainer: the trainer, after training.
        log: the progress log, whose records become the loss curve.
        early_stopping: the callback that measured dev questions, if any.
        facts: more entries of run.json.
    """
    weights = trainer.adapter_weights()
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if early_stopping:
        early_stopping.restore_best(model)
        # An evaluation must know which questions chose the adapter, since their scores favor it.
        questions = [example.id for example in dev_questions(job.settings, job.dataset)]
        facts |= {"early_stopping": {"by": early_stopping.by, "best": early_stopping.best, "questions": questions}}
    # The base's path on this machine means nothing elsewhere.
    model.peft_config["default"].base_model_name_or_path = job.base_model
    with atomic_folder(job.output) as folder:
        model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        shutil.copy(job.checkpoints / PROGRESS_FILE, folder)
        points = [LossPoint(step=record["step"], loss=record["loss"]) for record in log.records()]
        write_loss_curve(points, folder, early_stopping.by if early_stopping else "", _dev_points(early_stopping))
        if (job.checkpoints / TENSORBOARD).is_dir():
            shutil.copytree(job.checkpoints / TENSORBOARD, folder / TENSORBOARD)
        run = _run_record(job, trainer, log) | facts
        (folder / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False), encoding="utf-8")


def _dev_points(early_stopping: EarlyStopping | None) -> list[DevPoint]:
    return early_stopping.points if early_stopping else []


def _run_record(job: TrainingJob, trainer: AnswerTrainer, log: ProgressLog) -> dict[str, Any]:
    return {
        "base_model": job.base_model,
        "base_fingerprint": job.base_fingerprint,
        "dataset_sha256": job.dataset_sha256,
        "prompt_template": dataset_template(job.dataset).text,
        "settings": job.settings.model_dump(mode="json"),
        "steps": trainer.state.global_step,
        "loss": log.records()[-1]["loss"],
        "warnings": loss_warnings([record["loss"] for record in log.records()]),
        "seconds": round(log.seconds, 1),
        "tokens": log.tokens,
        "computed_tokens": log.computed_tokens,
        "attention": trainer.model.config._attn_implementation,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "processes": trainer.accelerator.num_processes,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
