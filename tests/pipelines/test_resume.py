"""Which train steps `resume` runs again. tests/e2e/test_runs.py resumes runs on a real cluster."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.pipelines.cluster.kubeflow import Access
from chatmetrics.pipelines.cluster.submission import resume

SEAL = "checkpoint-20.abc/sealed.json"


def write(folder: Path, key: str, content: object = None) -> None:
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content or {}))


def ended_run(root: Path, tasks: dict[str, str], state: str = "FAILED", **parameters: str) -> Any:
    """A run whose folder is below `root`, with the states of its tasks by display name."""
    uris = {"run_uri": f"{root}/{{run}}", "checkpoints": f"{root}/{{run}}/checkpoints"}
    return SimpleNamespace(
        run_id="old",
        display_name="demo",
        state=state,
        recurring_run_id=None,
        experiment_id="e",
        service_account="",
        pipeline_version_reference=SimpleNamespace(pipeline_id="p", pipeline_version_id="v"),
        runtime_config=SimpleNamespace(parameters=uris | parameters),
        run_details=SimpleNamespace(
            task_details=[SimpleNamespace(display_name=name, state=state) for name, state in tasks.items()]
        ),
    )


def parameters_of_resumed(run: Any) -> dict[str, str]:
    """The parameters of the run that resumes a run, without those of the run itself."""
    started: list[dict[str, str]] = []

    def run_pipeline(params: dict[str, str], **_: object) -> Any:
        started.append(params)
        return SimpleNamespace(run_id="new")

    client: Any = SimpleNamespace(run_pipeline=run_pipeline)
    assert resume(client, Access("http://kfp", "kubeflow"), run) == "new"
    [params] = started
    return {name: value for name, value in params.items() if value != run.runtime_config.parameters.get(name)}


@pytest.mark.parametrize(
    ("keys", "tasks", "changed"),
    [
        ([SEAL], {"train": "FAILED"}, {"resume_from"}),
        ([SEAL], {"train": "CANCELED"}, {"resume_from"}),
        ([SEAL], {"train": "RUNNING"}, {"resume_from"}),
        ([SEAL], {}, {"resume_from"}),
        ([SEAL], {"train": "SUCCEEDED", "merge": "FAILED"}, set()),
        ([SEAL], {"train": "CACHED", "evaluate": "FAILED"}, set()),
        ([SEAL], {"train": "SKIPPED", "gate": "FAILED"}, set()),
        ([], {"train": "FAILED"}, set()),
        ([], {"preprocess": "FAILED"}, set()),
        # With several rounds: only the round that had not succeeded.
        ([f"round-1/{SEAL}"], {"train round 1": "SUCCEEDED", "distill": "FAILED"}, set()),
        ([f"round-1/{SEAL}"], {"train round 1": "FAILED"}, {"resume_rounds_from"}),
        ([f"round-1/{SEAL}", SEAL], {"train round 1": "SUCCEEDED", "train": "FAILED"}, {"resume_from"}),
        ([f"round-1/{SEAL}", SEAL], {"train round 1": "SUCCEEDED", "train": "SUCCEEDED"}, set()),
    ],
)
def test_only_a_train_that_had_not_succeeded_runs_again(
    keys: list[str], tasks: dict[str, str], changed: set[str], tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    for key in keys:
        write(tmp_path / "old" / "checkpoints", key)
    found = parameters_of_resumed(ended_run(tmp_path, tasks))
    assert found == dict.fromkeys(changed, f"{tmp_path}/old/checkpoints")


def test_a_step_s_own_record_counts_too(tmp_path: Path) -> None:
    write(tmp_path / "old" / "checkpoints", SEAL)
    write(tmp_path / "old", "steps/train.json", {"state": "succeeded"})
    assert parameters_of_resumed(ended_run(tmp_path, {})) == {}
    write(tmp_path / "old", "steps/train.json", {"state": "interrupted"})
    assert set(parameters_of_resumed(ended_run(tmp_path, {}))) == {"resume_from"}


def test_a_run_without_cache_resumes_from_the_last_checkpoint_of_a_train_that_succeeded(tmp_path: Path) -> None:
    write(tmp_path / "old" / "checkpoints", SEAL)
    tasks = {"train": "SUCCEEDED", "evaluate": "FAILED"}
    write(tmp_path / "old", "submitted.json", {"cache": False})
    assert set(parameters_of_resumed(ended_run(tmp_path, tasks))) == {"resume_from"}
    assert json.loads((tmp_path / "new" / "submitted.json").read_bytes()) == {"cache": False, "again": "old"}
    write(tmp_path / "old", "submitted.json", {"cache": True})
    assert not parameters_of_resumed(ended_run(tmp_path, tasks))
    scheduled = ended_run(tmp_path, tasks)
    scheduled.recurring_run_id = "sunday"
    assert set(parameters_of_resumed(scheduled)) == {"resume_from"}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"5", b"null", b"\xff"])
def test_a_damaged_record_is_a_warning(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "old" / "checkpoints", SEAL)
    (tmp_path / "old" / "submitted.json").write_bytes(content)
    assert set(parameters_of_resumed(ended_run(tmp_path, {"train": "FAILED"}))) == {"resume_from"}
    assert "warning: submitted.json of run old is not available" in capsys.readouterr().err


def test_what_an_earlier_run_resumed_from_is_kept(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    run = ended_run(tmp_path, {"train": "FAILED"}, resume_from="s3://bucket/older")
    assert parameters_of_resumed(run) == {}


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "SUCCEEDED"])
def test_a_run_that_has_not_failed_is_not_resumed(state: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"wait for it|nothing to resume"):
        parameters_of_resumed(ended_run(tmp_path, {}, state))
