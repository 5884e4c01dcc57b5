"""What the launcher hands to the training processes: a JSON file."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from chatmetrics.components.storage.files import atomic_file
from chatmetrics.components.train.settings import TrainSettings

# How often something is written down, by how many helpers examples are read, and how many at once how many devices
# take, by which kernel, does not change what is learnt: a run may go on on other devices than it began on.
NOT_IN_IDENTITY = {"logging_steps", "checkpoint_steps", "keep_checkpoints", "workers", "attention"}
NOT_IN_IDENTITY |= {"batch_size", "gradient_accumulation", "processes", "pack_tokens", "gradient_checkpointing"}
NOT_IN_IDENTITY |= {"report_to", "mlflow_uri"}

FINISHED = "finished"


class TrainingJob(BaseModel):
    """One training run.

    Attributes:
        dataset: the folder with train.jsonl.
        dataset_sha256: of train.jsonl.
        base_model: the base as the recipe names it.
        base_fingerprint: changes when the base's files do.
        base_folder: where the base is on this machine.
        output: the adapter folder.
        checkpoints: where checkpoints and progress.jsonl go, and where an interrupted run is resumed.
        ending: file in which the processes leave word for the launcher of how they ended.
        resume_from: the checkpoint to go on from.
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
        """Tell the launcher how a process ended: `FINISHED`, or the name and text of an error."""
        with atomic_file(self.ending) as file:
            file.write(json.dumps({"kind": kind, "message": message}).encode())

    def identity(self) -> dict[str, str]:
        """What checkpoints must have in common to be of one run, by name."""
        settings = {name: str(value) for name, value in self.settings if name not in NOT_IN_IDENTITY}
        settings["examples_per_step"] = str(self.settings.examples_per_step)
        return {**settings, "dataset": self.dataset_sha256, "base_model": self.base_fingerprint}
