"""The whole DAG on this machine with a tiny model: killed, resumed, cached, below the gate. Minutes on two cores."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.acceptance_test import read_acceptance_test
from tests.pipelines.runs import FinishedRun, run_command, run_recipe
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


def processes_of(work: Path) -> list[int]:
    """Ids of other processes whose command line names this folder."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(work).encode() in _command_line(path) and int(path.parent.name) != os.getpid()
    ]


def _command_line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "runs"


@pytest.fixture(scope="module")
def killed(tiny_recipe: Path, work: Path) -> FinishedRun:
    """A run whose process, but not its children, is killed when training has written a checkpoint."""
    process = subprocess.Popen(
        run_command(tiny_recipe, work), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until((work / ".lock").exists, 120)
    second = run_recipe(tiny_recipe, work)
    wait_until(lambda: list(work.glob("checkpoints/*/checkpoint-*")) or process.poll() is not None, 600)
    process.send_signal(signal.SIGKILL)
    output, error = process.communicate()
    wait_until(lambda: not processes_of(work), 60)
    assert (second.status, "wait for it" in second.error) == (3, True)
    return FinishedRun(process.returncode, output.splitlines(), error)


@pytest.fixture(scope="module")
def resumed(killed: FinishedRun, tiny_recipe: Path, work: Path) -> FinishedRun:
    return run_recipe(tiny_recipe, work)


def test_a_killed_run_leaves_no_process_and_is_resumed(killed: FinishedRun, resumed: FinishedRun, work: Path) -> None:
    assert killed.status == -signal.SIGKILL
    assert not any(line.startswith("merge") for line in killed.lines)
    assert resumed.status == 0, resumed.error
    assert any("resuming from" in line for line in resumed.lines)
    assert resumed.state_of("preprocess") == "cached"


def test_a_run_ends_with_a_report_and_a_published_model(resumed: FinishedRun, work: Path) -> None:
    assert [resumed.state_of(step) for step in ("train", "merge", "convert student", "evaluate")] == ["done"] * 4
    [manifest] = work.glob("models/tiny/*/manifest.json")
    provenance = json.loads(manifest.read_bytes())["provenance"]
    assert {"dataset_sha256", "base_fingerprint", "adapter_sha256"} <= set(provenance)
    acceptance_test = json.loads(manifest.read_bytes())["acceptance_test"]
    assert len(read_acceptance_test(manifest.with_name(acceptance_test)).questions) == 6
    outcome = json.loads(next(work.glob("logs/*/outcome.json")).read_bytes())
    assert outcome["state"] == "SUCCEEDED"
    assert outcome["manifest_uri"] == manifest.as_uri()
    assert Path(outcome["report"]).is_file()
    assert f"report: {outcome['report']}" in resumed.lines


def test_unchanged_steps_are_cached(resumed: FinishedRun, tiny_recipe: Path, work: Path) -> None:
    started = time.monotonic()
    again = run_recipe(tiny_recipe, work, "deploy.enabled=true")
    assert again.status == 0, again.error
    steps = ("preprocess", "train", "merge", "convert student", "convert base", "evaluate")
    assert [again.state_of(step) for step in steps] == ["cached"] * 6
    # A local run does not deploy, and says so once.
    assert len([line for line in again.lines if "deploy" in line.split()[:1] or line.startswith("deploy:")]) == 1
    assert time.monotonic() - started < 60


def test_a_deleted_model_is_converted_again(resumed: FinishedRun, tiny_recipe: Path, work: Path) -> None:
    [manifest] = work.glob("models/tiny/*/manifest.json")
    shutil.rmtree(manifest.parent)
    again = run_recipe(tiny_recipe, work)
    assert again.status == 0, again.error
    assert manifest.is_file()
    assert [again.state_of(step) for step in ("train", "convert student", "convert base")] == [
        "cached",
        "done",
        "cached",
    ]


def test_a_student_below_the_gate_fails_the_run_every_time(resumed: FinishedRun, tiny_recipe: Path, work: Path) -> None:
    first = run_recipe(tiny_recipe, work, "evaluate.gate=0.99")
    second = run_recipe(tiny_recipe, work, "evaluate.gate=0.99")
    assert (first.status, second.status) == (4, 4)
    assert (first.state_of("train"), first.state_of("evaluate")) == ("cached", "done")
    assert (second.state_of("evaluate"), second.state_of("gate")) == ("cached", "failed")
    assert second.error.startswith("error: gate: the student is below the gate: accuracy ")
    [report] = [line.removeprefix("report: ") for line in second.lines if line.startswith("report: ")]
    assert Path(report).is_file()
    assert report in second.error
    outcomes = [json.loads(path.read_bytes()) for path in sorted(work.glob("logs/*/outcome.json"))]
    assert (outcomes[-1]["state"], outcomes[-1]["passed"]) == ("FAILED", False)


def test_changed_data_are_noticed_and_a_broken_record_is_an_error_of_one_line(
    resumed: FinishedRun, tiny_recipe: Path, work: Path
) -> None:
    questions = tiny_recipe.parent / "questions" / "train.jsonl"
    good = questions.read_text()
    try:
        questions.write_text(good + '{"question": "no query", "db_id": "shop"}\n')
        done = run_recipe(tiny_recipe, work)
    finally:
        questions.write_text(good)
    assert done.status == 3
    assert (done.state_of("preprocess"), done.state_of("outcome")) == ("failed", "done")
    assert not any(line.startswith("train") for line in done.lines)
    [line] = done.error.strip().splitlines()
    assert line.startswith(f"error: preprocess: {questions}:25")
