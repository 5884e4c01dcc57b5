"""The log and state that a step writes to the run's folder, and the run's summary."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import GateError, InputError, StorageError
from chatmetrics.components.run_record import recorded, with_run_id
from chatmetrics.components.run_summary import summarize
from chatmetrics.components.storage.files import AlreadyThereError
from chatmetrics.components.storage.store import open_store


def read_state(run: Path, step: str = "train") -> dict[str, Any]:
    return dict(json.loads((run / "steps" / f"{step}.json").read_bytes()))


def read_log(run: Path, step: str = "train") -> str:
    return (run / "steps" / f"{step}.log").read_text("utf-8")


def run_step(run: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a step in its own process, as in a pod."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = f"""
import os, subprocess, sys, time
from chatmetrics.components.run_record import recorded
with recorded("train", {str(run)!r}):
{lines}
print("afterwards")
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_successful_step_keeps_its_log_and_that_of_its_children(tmp_path: Path) -> None:
    child = "subprocess.run([sys.executable, '-c', 'import sys; print(1, file=sys.stderr); print(2)'], check=True)"
    done = run_step(tmp_path, f"print('here')\n{child}")
    assert {"here", "1", "2"} == set(read_log(tmp_path).splitlines())
    assert read_state(tmp_path)["state"] == "succeeded"
    assert {"here", "1", "2", "afterwards"} == set((done.stdout + done.stderr).split())


def test_a_failed_step_records_its_reason_and_can_be_retried(tmp_path: Path) -> None:
    assert run_step(tmp_path, "raise ValueError('odd\\nnumber')").returncode == 1
    first = read_state(tmp_path)
    assert (first["state"], first["reason"]) == ("failed", "ValueError: odd number")
    assert "Traceback" in read_log(tmp_path)
    assert run_step(tmp_path, "print('second')").returncode == 0
    assert read_state(tmp_path)["state"] == "succeeded"
    assert read_state(tmp_path)["started"] == first["started"]
    assert read_log(tmp_path).index("Traceback") < read_log(tmp_path).index("second")


@pytest.mark.parametrize("kind", [InputError, GateError])
def test_an_error_that_a_retry_cannot_fix_is_not_retried(kind: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(kind), recorded("train", str(tmp_path)):
        raise kind("no such column")
    with pytest.raises(kind, match="no such column"), recorded("train", str(tmp_path)):
        pytest.fail("it was tried again")


def test_an_input_error_is_retried_after_a_while(tmp_path: Path) -> None:
    with pytest.raises(InputError), recorded("train", str(tmp_path)):
        raise InputError("no such file")
    long_ago = read_state(tmp_path) | {"ended": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "steps" / "train.json").write_text(json.dumps(long_ago))
    with recorded("train", str(tmp_path)):
        pass
    assert read_state(tmp_path)["state"] == "succeeded"


def test_an_error_is_recorded_as_the_class_that_decides_the_exit_status(tmp_path: Path) -> None:
    with pytest.raises(AlreadyThereError), recorded("convert", str(tmp_path)):
        raise AlreadyThereError("s3://models/x is published with other content")
    assert read_state(tmp_path, "convert")["kind"] == "StorageError"


def test_a_full_disk_is_recorded_as_such_and_can_be_retried(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(StorageError, match="the disk is full"), recorded("merge", str(tmp_path)):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise InputError("base: the download failed; check the name and the network") from error
        record = read_state(tmp_path, "merge")
        assert (record["kind"], record["state"]) == ("StorageError", "failed")
        assert "the disk is full; free some space" in record["reason"]


def test_a_killed_step_is_recorded_as_running(tmp_path: Path) -> None:
    run_step(tmp_path, "print('step 7', flush=True)\ntime.sleep(6)\nos.kill(os.getpid(), 9)")
    assert read_state(tmp_path)["state"] == "running"
    assert "step 7" in read_log(tmp_path)


def test_a_step_that_sigterm_ended_is_interrupted_and_resumes(tmp_path: Path) -> None:
    assert run_step(tmp_path, "print('step 7')\nsys.exit(143)").returncode == 143
    assert (read_state(tmp_path)["state"], read_state(tmp_path)["reason"]) == (
        "interrupted",
        "interrupted by SIGTERM; resumes when it is started again",
    )
    assert "Traceback" not in read_log(tmp_path)
    text = summarize(open_store(str(tmp_path)), "hotel", "FAILED", "", price_per_hour=0.0)[1]
    assert "**train: interrupted by SIGTERM; resumes when it is started again**" in text
    assert run_step(tmp_path, "print('second')").returncode == 0
    assert read_state(tmp_path)["state"] == "succeeded"


def test_a_store_that_does_not_answer_does_not_fail_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with recorded("train", "s3://nowhere/run"):
        done = True
    assert done
    assert "the run's record is incomplete" in capfd.readouterr().err


def test_the_placeholder_is_replaced_by_the_id_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATMETRICS_RUN", "1f22")
    assert with_run_id("s3://bucket/runs/{run}/checkpoints") == "s3://bucket/runs/1f22/checkpoints"
    assert with_run_id("file:///x") == "file:///x"
    monkeypatch.delenv("CHATMETRICS_RUN")
    with pytest.raises(InputError, match="CHATMETRICS_RUN is not set"):
        with_run_id("s3://bucket/runs/{run}")


def test_the_summary_begins_with_the_reason(tmp_path: Path) -> None:
    with recorded("preprocess", str(tmp_path)):
        pass
    with pytest.raises(InputError), recorded("train", str(tmp_path)):
        raise InputError("the loss is nan at step 3; lower train.learning_rate")
    record, text = summarize(open_store(str(tmp_path)), "hotel", "FAILED", "", price_per_hour=3.0)
    assert text.splitlines()[2] == r"**train: the loss is nan at step 3; lower train\.learning\_rate**"
    assert (record["kind"], record["state"]) == ("InputError", "FAILED")
    assert "chatmetrics resume" in text


def test_the_summary_of_a_run_that_failed_before_any_step_has_kfp_s_reason(tmp_path: Path) -> None:
    record, text = summarize(open_store(str(tmp_path)), "hotel", "FAILED", "image cannot be pulled", 0.0)
    assert "**image cannot be pulled**" in text
    assert record["message"] == "image cannot be pulled"


def test_the_summary_has_the_cost_of_training(tmp_path: Path) -> None:
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T02:00:00+00:00"}
    (tmp_path / "steps").mkdir()
    step = {"step": "train", "state": "succeeded", "node": "gpu-1", **times}
    (tmp_path / "steps" / "train.json").write_text(json.dumps(step))
    scores = {"passed": True, "gate": 0.5, "gate_accuracy": 0.9, "report": "r", "manifest_uri": "s3://m/manifest.json"}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    record, text = summarize(open_store(str(tmp_path)), "hotel", "COMPLETE", "", price_per_hour=3.0)
    assert record["state"] == "SUCCEEDED"
    assert (record["train_hours"], record["cost"]) == (2.0, 6.0)
    assert "cost 6.00" in text
    assert "published: s3://m/manifest.json" in text


def test_the_summary_says_whether_a_published_model_was_deployed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    scores = {"gate": 0.5, "gate_accuracy": 0.9, "report": "r", "manifest_uri": "s3://m/manifest.json"}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(GateError), recorded("deploy", str(tmp_path)):
        raise GateError("hotel:3 is not deployed: 1 of 4 right; revision 6 keeps serving")
    record, text = summarize(store, "hotel", "FAILED", "", 0.0)
    assert (record["kind"], record["message"].partition(":")[0]) == ("GateError", "deploy")
    assert "then `chatmetrics deploy s3://m/manifest.json`; the revision served before is still being served" in text
    (tmp_path / "steps" / "deploy.json").unlink()
    (tmp_path / "deployment.json").write_text('{"endpoint": "http://hotel.shop.svc:80", "revision": 7, "smoke": ""}')
    record, text = summarize(store, "hotel", "SUCCEEDED", "", 0.0)
    assert (record["endpoint"], record["revision"]) == ("http://hotel.shop.svc:80", 7)
    assert "- served: http://hotel.shop.svc:80, revision 7" in text


def test_the_summary_has_the_lines_of_the_steps_and_the_teacher_s_accuracy(tmp_path: Path) -> None:
    with recorded("distill", str(tmp_path)) as record:
        record["summary"] = "8 of 10 samples pass; ¥4.20 spent"
    scores = {"gate": 0.5, "gate_accuracy": 0.9, "teacher_accuracy": 0.82, "report": "r"}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    text = summarize(open_store(str(tmp_path)), "hotel", "SUCCEEDED", "", 0.0)[1]
    assert "- distill: 8 of 10 samples pass; ¥4.20 spent" in text.splitlines()
    assert "- accuracy 90.0%, the gate is 50.0%; teacher accuracy 82.0%" in text.splitlines()
