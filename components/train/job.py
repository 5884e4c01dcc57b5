"""What the launcher hands to the training processes: a JSON file."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from chatmetrics.components.train.settings import TrainSettings

# How often something is written down, by how many helpers examples are read, and how many at once the device takes, by
# which kernel, does not change what is learnt.
WITHOUT_EFFECT = {"logging_steps", "checkpoint_steps", "keep_checkpoints", "workers", "pack_tokens", "attention"}


class TrainJob(BaseModel):
    """One training run.

    Attributes:
        dataset: the folder with train.jsonl.
        dataset_sha256: of train.jsonl.
        base_model: the base as the recipe names it.
        base_fingerprint: changes when the base's files do.
        base_folder: where the base is on this machine.
        output: the adapter folder.
        checkpoints: where checkpoints and progress.jsonl go, and where an interrupted run is resumed.
        failure: file for the one line that a failing process leaves for the launcher.
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
    failure: Path
    ends_with_launcher: bool = False

    def identity(self) -> dict[str, str]:
        """What checkpoints must have in common to be of one run, by name."""
        settings = {name: str(value) for name, value in self.settings if name not in WITHOUT_EFFECT}
        return {**settings, "dataset": self.dataset_sha256, "base_model": self.base_fingerprint}
