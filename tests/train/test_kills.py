"""A training run that is killed twenty times at random moments ends like an undisturbed one."""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from chatmetrics.components.storage.store import Store, open_store
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.storage import s3
from tests.train.simulated_pods import ForkServer, SimulatedPod, StartPod, pod_starter
from tests.train.small_dataset import write_dataset
from tests.waiting import wait_until

STEPS = 240
SETTINGS = TrainSettings(
    max_steps=STEPS,
    checkpoint_steps=4,
    logging_steps=3,  # so that checkpoints are also saved between two points of the loss curve
    batch_size=4,
    gradient_accumulation=1,
    learning_rate=2e-3,
    lora_dropout=0.1,
)
MAX_STEPS = 5  # until a random moment, so that the run does not finish before its last kill
SEALED = "sealed.json"
KILLS = {
    "SIGTERM to the launcher": (4, 143),
    "SIGKILL of the launcher": (4, -9),
    "SIGKILL of the training process": (3, 1),
    "SIGTERM while a checkpoint is written": (3, 143),
    "SIGKILL while a checkpoint is written": (3, -9),
    "SIGKILL while a checkpoint is uploaded": (3, -9),
}


@pytest.fixture
def start(aws: s3.Server, fork_server: ForkServer, tmp_path: Path) -> StartPod:
    base = tiny_base(tmp_path / "base", hidden=16, layers=1)
    return pod_starter(fork_server, tmp_path, base, write_dataset(tmp_path / "dataset"))


def checkpoints(store: Store, sealed: bool) -> set[str]:
    """The names of complete checkpoints in a store, or of incomplete ones."""
    keys = store.list("checkpoint-")
    complete = {key.partition("/")[0] for key in keys if key.endswith(SEALED)}
    return complete if sealed else {key.partition("/")[0] for key in keys} - complete


def kill(pod: SimulatedPod, kind: str, store: Store, chance: random.Random) -> bool:
    """Kill a pod; return false if it died too late for this kind of kill."""
    wait_until(pod.has_started, 60)
    if kind.endswith("written"):
        wait_until(pod.is_writing_checkpoint, 60)
        if kind.startswith("SIGKILL"):
            os.kill(pod.training_processes()[0], signal.SIGKILL)
        os.kill(pod.id, signal.SIGKILL if kind.startswith("SIGKILL") else signal.SIGTERM)
        return pod.is_writing_checkpoint()
    if kind.endswith("uploaded"):
        before = checkpoints(store, sealed=False)
        wait_until(lambda: checkpoints(store, sealed=False) - before, 60)
        os.kill(pod.id, signal.SIGKILL)
        time.sleep(0.1)  # for the server to process earlier requests
        return bool(checkpoints(store, sealed=False) - before)
    moment = pod.last_step() + chance.randint(0, MAX_STEPS)
    wait_until(lambda: pod.last_step() >= moment, 60)
    time.sleep(chance.uniform(0, 0.2))
    process = pod.training_processes()[0] if kind.endswith("training process") else pod.id
    os.kill(process, signal.SIGTERM if kind.startswith("SIGTERM") else signal.SIGKILL)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("total", [len(KILLS), pytest.param(20, marks=pytest.mark.exhaustive)])
def test_a_run_killed_many_times_ends_like_an_undisturbed_one(start: StartPod, bucket: str, total: int) -> None:
    undisturbed = start(SETTINGS, f"s3://{bucket}/undisturbed/checkpoints")
    assert undisturbed.exit_status() == 0, undisturbed.log()

    run, uri = f"s3://{bucket}/killed", f"s3://{bucket}/killed/checkpoints"
    store, chance = open_store(uri), random.Random(0)
    planned = {kind: count if total == 20 else 1 for kind, (count, _) in KILLS.items()}
    plan = chance.sample(list(KILLS), counts=list(planned.values()), k=total)
    done: Counter[str] = Counter()
    while plan and done.total() < 40:
        pod = start(SETTINGS, uri, run)
        was_in_time = kill(pod, plan[0], store, chance)
        assert pod.exit_status() == KILLS[plan[0]][1], pod.log()
        assert not (pod.folder / "adapter").exists()
        if plan[0].startswith("SIGTERM"):
            assert json.loads(open_store(run).read_bytes("steps/train.json"))["state"] == "interrupted"
        if was_in_time:
            done[plan.pop(0)] += 1
        else:
            done["too late"] += 1
    assert {kind: done[kind] for kind in KILLS} == planned

    finished = start(SETTINGS, uri, run)
    assert finished.exit_status() == 0, finished.log()
    assert "resuming from" in finished.log()
    expected, weights = undisturbed.adapter_weights(), finished.adapter_weights()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    assert finished.loss_curve() == undisturbed.loss_curve()
    assert [step for step, *_ in finished.loss_curve()] == [1, *range(3, STEPS + 1, 3)]
    assert len(checkpoints(store, sealed=True)) == SETTINGS.keep_checkpoints
    assert not checkpoints(store, sealed=False)
