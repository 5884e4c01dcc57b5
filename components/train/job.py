"""The job file: what the launcher tells the training processes."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, dataset_template
from chatmetrics.components.storage.files import atomic_file
from chatmetrics.components.train.settings import TrainSettings

# Settings that do not change what is learned: how often something is written, and on how many devices and how many
# examples at once a step is computed. A run may resume with other values, for example on another node pool.
NOT_IN_IDENTITY = {
    "logging_steps",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "workers",
    "attention",
}
NOT_IN_IDENTITY |= {"batch_size", "gradient_accumulation", "processes", "pack_tokens", "gradient_checkpointing"}
NOT_IN_IDENTITY |= {"report_to", "mlflow_uri"}

FINISHED = "finished"


class TrainingJob(BaseModel):
    """One training run.

    Attributes:
        settings: the recipe's `train` section.
        dataset: the folder with train.jsonl.
        dataset_sha256: sha256 of train.jsonl.
        base_model: the base model as the recipe names it.
        base_fingerprint: a hash that changes when the base's files do.
        base_folder: the base's folder on this machine.
        output: the adapter folder to write.
        checkpoints: the folder of checkpoints and progress.jsonl, from which an interrupted run resumes.
        ending: the file in which a training process reports to the launcher how it ended.
        resume_from: the checkpoint to resume from.
        ends_with_launcher: whether the end of standard input means that the launcher has died.
    """

    model_config = ConfigDict(frozen=True)

    settings: TrainSettings
    dataset: Path
    dataset_sha256: str
    base_model: str
    base_fingerprint: str
    base_folder: Path
    output: Path
    checkpoints: Path
    ending: Path
    resume_from: Path | None = None
    ends_with_launcher: bool = False

    def report_ending(self, kind: str, message: str = "") -> None:
        """Report to the launcher how this process ended: `FINISHED`, or the class name and text of an error."""
        with atomic_file(self.ending) as file:
            file.write(json.dumps({"kind": kind, "message": message}).encode())

    def identity(self) -> dict[str, str]:
        """Names and values that must be equal in all checkpoints of a run."""
        settings = {name: str(value) for name, value in self.settings if name not in NOT_IN_IDENTITY}
        settings["examples_per_step"] = str(self.settings.examples_per_step)
        template = dataset_template(self.dataset)
        # Checkpoints from before there was a choice do not name it.
        named = {} if template == DEEPSEEK3 else {"prompt_template": template.text}
        return {**settings, **named, "dataset": self.dataset_sha256, "base_model": self.base_fingerprint}
