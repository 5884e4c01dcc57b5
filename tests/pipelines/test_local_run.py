"""The whole DAG on this machine with a tiny model, killed, resumed, cached and gated. Some minutes on two cores."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.acceptance_test import read_acceptance_test
from tests.pipelines.runs import Run, command, run

pytestmark = pytest.mark.slow


def processes_of(work: Path) -> list[int]:
    """Processes that work in or for this folder, other than this one."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(work).encode() in _content(path) and int(path.parent.name) != os.getpid()
    ]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def wait_until(condition, seconds: float) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "runs"


@pytest.fixture(scope="module")
def killed(tiny_recipe: Path, work: Path) -> Run:
    """A run whose own process is killed, not its children, when training has left a checkpoint."""
    process = subprocess.Popen(command(tiny_recipe, work), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until((work / ".lock").exists, 120)
    second = run(tiny_recipe, work)
    wait_until(lambda: list(work.glob("checkpoints/*/checkpoint-*")) or process.poll() is not None, 600)
    process.send_signal(signal.SIGKILL)
    output, error = process.communicate()
    wait_until(lambda: not processes_of(work), 60)
    assert (second.status, "wait for it" in second.error) == (3, True)
    return Run(process.returncode, output.splitlines(), error)


@pytest.fixture(scope="module")
def resumed(killed: Run, tiny_recipe: Path, work: Path) -> Run:
    return run(tiny_recipe, work)


def test_a_killed_run_leaves_no_process_and_is_resumed(killed: Run, resumed: Run, work: Path) -> None:
    assert killed.status == -signal.SIGKILL
    assert not any(line.startswith("merge") for line in killed.lines)
    assert resumed.status == 0, resumed.error
    assert any("resuming from" in line for line in resumed.lines)
    assert resumed.state_of("preprocess") == "cached"


def test_a_run_ends_with_a_report_and_a_published_model(resumed: Run, work: Path) -> None:
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


def test_what_has_not_changed_is_not_done_again(resumed: Run, tiny_recipe: Path, work: Path) -> None:
    started = time.monotonic()
    again = run(tiny_recipe, work, "deploy.enabled=true")
    assert again.status == 0, again.error
    steps = ("preprocess", "train", "merge", "convert student", "convert base", "evaluate")
    assert [again.state_of(step) for step in steps] == ["cached"] * 6
    # Nothing is deployed from here, which is said.
    assert len([line for line in again.lines if "deploy" in line.split()[:1] or line.startswith("deploy:")]) == 1
    assert time.monotonic() - started < 60


def test_a_model_that_was_deleted_is_made_again(resumed: Run, tiny_recipe: Path, work: Path) -> None:
    [manifest] = work.glob("models/tiny/*/manifest.json")
    shutil.rmtree(manifest.parent)
    again = run(tiny_recipe, work)
    assert again.status == 0, again.error
    assert manifest.is_file()
    assert [again.state_of(step) for step in ("train", "convert student", "convert base")] == [
        "cached",
        "done",
        "cached",
    ]


def test_a_student_below_the_gate_fails_the_run_every_time(resumed: Run, tiny_recipe: Path, work: Path) -> None:
    first = run(tiny_recipe, work, "evaluate.gate=0.99")
    second = run(tiny_recipe, work, "evaluate.gate=0.99")
    assert (first.status, second.status) == (4, 4)
    assert (first.state_of("train"), first.state_of("evaluate")) == ("cached", "done")
    assert (second.state_of("evaluate"), second.state_of("gate")) == ("cached", "failed")
    assert second.error.startswith("error: gate: the student is below the gate: accuracy ")
    [report] = [line.removeprefix("report: ") for line in second.lines if line.startswith("report: ")]
    assert Path(report).is_file()
    assert report in second.error
    outcomes = [json.loads(path.read_bytes()) for path in sorted(work.glob("logs/*/outcome.json"))]
    assert (outcomes[-1]["state"], outcomes[-1]["passed"]) == ("FAILED", False)


def test_changed_data_are_noticed_and_a_broken_record_is_one_line(resumed: Run, tiny_recipe: Path, work: Path) -> None:
    questions = tiny_recipe.parent / "questions" / "train.jsonl"
    good = questions.read_text()
    try:
        questions.write_text(good + '{"question": "no query", "db_id": "shop"}\n')
        done = run(tiny_recipe, work)
    finally:
        questions.write_text(good)
    assert done.status == 3
    assert (done.state_of("preprocess"), done.state_of("outcome")) == ("failed", "done")
    assert not any(line.startswith("train") for line in done.lines)
    [line] = done.error.strip().splitlines()
    assert line.startswith(f"error: preprocess: {questions}:25")
