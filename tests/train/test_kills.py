"""One training run whose pod is killed twenty times, at random moments, and which ends as if it never had been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chatmetrics.components.storage.store import open_store
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.storage import s3
from tests.train.nursery import TRAINER
from tests.train.questions import write_dataset

STEPS = 150
SETTINGS = TrainSettings(
    max_steps=STEPS,
    checkpoint_steps=4,
    logging_steps=3,
    batch_size=4,
    gradient_accumulation=1,
    learning_rate=2e-3,
    lora_dropout=0.1,
)
MOST_STEPS = 5  # until a random moment: every attempt gets less far than a twentieth of the run
KILLS = {
    "SIGTERM": 4,
    "SIGKILL of the launcher": 4,
    "SIGKILL of the training process": 3,
    "SIGTERM while a checkpoint is written": 3,
    "SIGKILL while a checkpoint is written": 3,
    "SIGKILL while a checkpoint is uploaded": 3,
}


@dataclass
class Pod:
    """A pod of the train step with a disk of its own."""

    id: int
    folder: Path
    nursery: Any
    store: Any = field(repr=False)

    def trainer(self) -> int:
        return int((self.folder / TRAINER).read_text())

    def send(self, number: int) -> None:
        os.kill(self.id, number)

    def is_writing(self) -> bool:
        checkpoints = list(self.folder.glob("checkpoints-*/checkpoint-*"))
        return any(not (path / "sealed.json").exists() for path in checkpoints)

    def is_uploading(self) -> bool:
        return bool(unsealed(self.store))

    def steps(self) -> int:
        """The last that is in the progress of this run."""
        files = list(self.folder.glob("checkpoints-*/progress.jsonl"))
        lines = files[0].read_text().splitlines(keepends=True) if files else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)

    def progress(self) -> list[tuple[int, float, int, int]]:
        """Step, loss and tokens of what it learnt."""
        lines = (self.folder / "adapter/progress.jsonl").read_text().splitlines()
        names = ("step", "loss", "tokens", "computed_tokens")
        return [tuple(json.loads(line)[name] for name in names) for line in lines]

    def status(self) -> int:
        """How it ended, when its training process is gone too."""
        status = int(self.nursery.stdout.readline())
        if (self.folder / TRAINER).exists():
            s3.wait_until(lambda: is_gone(self.trainer()), 30)
        return status


def unsealed(store: Any) -> set[str]:
    """The checkpoints that are in the store in part."""
    keys = store.list("checkpoint-")
    return {key.partition("/")[0] for key in keys} - {key.partition("/")[0] for key in keys if "sealed.json" in key}


def is_gone(process: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True


@pytest.fixture
def start(bucket: str, tmp_path: Path) -> Iterator[Callable[[str], Pod]]:
    """Starts a pod of a run, on the same dataset and base."""
    base, dataset = tiny_base(tmp_path / "base", hidden=16, layers=1), write_dataset(tmp_path / "dataset")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.train.nursery"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as nursery:
        assert nursery.stdin and nursery.stdout and nursery.stdout.readline() == "ready\n"
        count = iter(range(1000))

        def begin(run: str) -> Pod:
            folder = tmp_path / f"pod-{next(count)}"
            folder.mkdir()
            uri = f"s3://{bucket}/{run}"
            request = {"settings": SETTINGS.model_dump(), "dataset": str(dataset), "base": str(base), "run": uri}
            request |= {"checkpoints": f"{uri}/checkpoints", "folder": str(folder)}
            print(json.dumps(request), file=nursery.stdin, flush=True)
            return Pod(int(nursery.stdout.readline()), folder, nursery, open_store(f"{uri}/checkpoints"))

        yield begin
        nursery.stdin.close()


def kill(pod: Pod, kind: str, chance: random.Random) -> bool:
    """Kill a pod in a way; false when the moment was over before it was dead."""
    s3.wait_until((pod.folder / TRAINER).exists, 60)
    if kind.endswith("written"):
        s3.wait_until(pod.is_writing, 60)
    elif kind.endswith("uploaded"):
        s3.wait_until(pod.is_uploading, 60)
    else:
        first, more = pod.steps(), chance.randint(0, MOST_STEPS)
        s3.wait_until(lambda: pod.steps() >= first + more, 60)
        time.sleep(chance.uniform(0, 0.2))
    if kind == "SIGTERM while a checkpoint is written":
        pod.send(signal.SIGTERM)
        return pod.is_writing()
    if kind == "SIGKILL while a checkpoint is written":
        os.kill(pod.trainer(), signal.SIGKILL)
        pod.send(signal.SIGKILL)
        return pod.is_writing()
    if kind == "SIGKILL while a checkpoint is uploaded":
        pod.send(signal.SIGKILL)
        time.sleep(0.1)
        return pod.is_uploading()
    if kind == "SIGKILL of the training process":
        os.kill(pod.trainer(), signal.SIGKILL)
    else:
        pod.send(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
    return True


def test_twenty_kills_change_nothing(start: Callable[[str], Pod], bucket: str) -> None:
    begun = time.monotonic()
    undisturbed = start("undisturbed")
    assert undisturbed.status() == 0, (undisturbed.folder / "log").read_text()
    print("undisturbed", time.monotonic() - begun)

    chance = random.Random(0)
    plan = chance.sample(list(KILLS), counts=KILLS.values(), k=20)
    struck: Counter[str] = Counter()
    while plan:
        t = time.time()
        pod = start("killed")
        hit = kill(pod, plan[0], chance)
        status = pod.status()
        print(plan[0], hit, status, pod.steps(), round(time.time() - t, 2))
        assert status == (143 if "SIGTERM" in plan[0] else 1 if "process" in plan[0] else -9), (pod.folder / "log").read_text()
        assert not (pod.folder / "adapter").exists()
        if hit:
            struck[plan.pop(0)] += 1
        assert len(list(pod.folder.parent.glob("pod-*"))) < 40
    assert struck == KILLS and struck.total() == 20
    begun = time.monotonic()
    finished = start("killed")
    assert finished.status() == 0, (finished.folder / "log").read_text()
    print("finished", time.monotonic() - begun)
    expected, weights = (load_file(pod.folder / "adapter/adapter_model.safetensors") for pod in (undisturbed, finished))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    curves = [pod.progress() for pod in (undisturbed, finished)]
    assert curves[0] == curves[1] and len(curves[0]) == STEPS // 3 + 1
    left = {key.partition("/")[0] for key in finished.store.list("checkpoint-")}
    assert len(left) == SETTINGS.keep_checkpoints and not unsealed(finished.store)
