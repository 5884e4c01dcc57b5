"""A recipe's knowledge: its path, the keys of local runs, and what is uploaded for a cluster."""

from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.pipelines.cluster import submission
from chatmetrics.pipelines.cluster.kubeflow import Access
from chatmetrics.pipelines.local.run import data_files
from chatmetrics.pipelines.pools import load_pools
from chatmetrics.pipelines.recipe import load_recipe
from tests.base_model.gguf_bases import write_gguf
from tests.pipelines.recording_client import recording_client
from tests.pipelines.runs import data_fingerprint


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe in a folder with its knowledge."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/knowledge.yaml").write_text("terms: {a: b}")
    path = tmp_path / "mine/mine.yaml"
    path.write_text("name: mine\nbase_model: x\npreprocess: {format: hotel, knowledge: knowledge.yaml}\n")
    return path


def test_a_local_run_is_repeated_when_the_knowledge_changes(recipe: Path, tmp_path: Path) -> None:
    assert load_recipe(str(recipe)).preprocess.knowledge == str(recipe.parent / "knowledge.yaml")
    before = data_fingerprint(recipe, tmp_path)
    assert data_fingerprint(recipe, tmp_path) == before
    (recipe.parent / "knowledge.yaml").write_text("terms: {a: c}")
    assert data_fingerprint(recipe, tmp_path) != before


def test_bird_s_descriptions_next_to_databases_are_data(tmp_path: Path) -> None:
    (tmp_path / "d/database_description").mkdir(parents=True)
    (tmp_path / "d/d.sqlite").write_bytes(b"")
    (tmp_path / "q.jsonl").write_text("{}")
    settings = PreprocessSettings(source=str(tmp_path / "q.jsonl"), format="jsonl", databases=str(tmp_path))
    assert tmp_path / "d/database_description" in data_files(settings)


def test_knowledge_is_uploaded_for_a_cluster(
    recipe: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "check_built", lambda train, recipe: None)
    client, started = recording_client()
    own = (f"base_model={write_gguf(tmp_path / 'base.gguf')}", f"cluster.store=s3://{bucket}")

    def arguments() -> Any:
        loaded = load_recipe(str(recipe), [*own, "cluster.base_parameters=0"])
        submitted = submission.Submission(loaded, "CPU", load_pools()["CPU"])
        submission.submit(client, Access("http://kfp", "kubeflow"), submitted)
        return started[-1]

    first = arguments()
    place = first["preprocess_settings"]["knowledge"]
    assert place.startswith(f"s3://{bucket}/inputs/") and place.endswith("/knowledge.yaml")
    (recipe.parent / "knowledge.yaml").write_text("terms: {a: c}")
    assert arguments()["data_fingerprint"] != first["data_fingerprint"]
