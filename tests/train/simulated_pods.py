"""Pods of the train step as a test sees them: what is on their disk, what is in their store, and how they end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors.torch import load_file

from chatmetrics.components.train.settings import TrainSettings
from tests.storage import s3
from tests.train.fork_server import TRAINERS

StartPod = Callable[..., "SimulatedPod"]


@dataclass
class SimulatedPod:
    """A pod, with a disk of its own unless its checkpoints are in a folder."""

    id: int
    folder: Path
    checkpoints: str
    results: IO[str]

    def started(self) -> bool:
        return (self.folder / TRAINERS).exists()

    def trainers(self) -> list[int]:
        return list(json.loads((self.folder / TRAINERS).read_text()))

    def steps(self) -> int:
        """The last in the progress of the run."""
        records = [record for path in self._local("progress.jsonl") for record in complete_lines(path)]
        return max((int(record["step"]) for record in records), default=0)

    def is_writing(self) -> bool:
        """Whether there is a checkpoint that is not complete."""
        return any(not (path / "sealed.json").exists() for path in self._local("checkpoint-*"))

    def _local(self, name: str) -> list[Path]:
        folder = Path(self.checkpoints)
        return list(folder.glob(name) if folder.is_absolute() else self.folder.glob(f"checkpoints-*/{name}"))

    def status(self) -> int:
        """How it ended, when its training processes are gone too."""
        status = int(self.results.readline())
        if self.started():
            s3.wait_until(lambda: all(map(is_gone, self.trainers())), 30)
        return status

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "adapter" / "adapter_model.safetensors")

    def curve(self) -> list[tuple[float, ...]]:
        """Steps, losses and tokens of the run that ended with this pod."""
        names = ("step", "loss", "tokens", "computed_tokens")
        records = complete_lines(self.folder / "adapter" / "progress.jsonl")
        return [tuple(record[name] for name in names) for record in records]


def complete_lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def is_gone(process: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True


@contextmanager
def pod_starter(folder: Path, base: Path, dataset: Path) -> Iterator[StartPod]:
    """Starts one pod after the other, given settings, where its checkpoints are and where its record; and of another
    base or dataset, which."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": f"{folder}/cache"}
    command, pipe = [sys.executable, "-m", "tests.train.fork_server"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        orders, answers = process.stdin, process.stdout
        assert orders and answers and answers.readline() == "ready\n"
        count = iter(range(1000))

        def start(settings: TrainSettings, checkpoints: str, run: str = "", **inputs: str) -> SimulatedPod:
            disk = folder / f"pod-{next(count)}"
            disk.mkdir()
            order = {"settings": settings.model_dump(), "checkpoints": checkpoints, "run": run, "folder": str(disk)}
            order |= {"dataset": str(dataset), "base": str(base), **inputs}
            print(json.dumps(order), file=orders, flush=True)
            return SimulatedPod(int(answers.readline()), disk, checkpoints, answers)

        yield start
        orders.close()
