"""Held-out sets in recipes, in the keys of local runs, and in what is uploaded for a cluster."""

import json
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.preprocess.settings import HeldOutSettings
from chatmetrics.pipelines.cluster import submission
from chatmetrics.pipelines.cluster.kubeflow import Access
from chatmetrics.pipelines.pools import load_pools
from chatmetrics.pipelines.recipe import load_recipe
from tests.base_model.gguf_bases import write_gguf
from tests.pipelines.recording_client import recording_client
from tests.pipelines.runs import data_fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recipe, whose paths are relative to it, and a set with its database."""
    folder = tmp_path / "recipes"
    (folder / "set").mkdir(parents=True)
    (folder / "set/dev.json").write_text(json.dumps([{"question": "How many?", "sql": "SELECT 1", "db_id": "d"}]))
    (folder / "set/d.sqlite").write_bytes(b"")
    (folder / "mine.yaml").write_text(
        "name: mine\nbase_model: hotel-base\npreprocess:\n  format: hotel\n  held_out:\n    short: set/dev.json\n"
        "    long: {source: set, databases: set, fields: {question: q}}\n    bucket: s3://b/dev.json\n"
    )
    return folder


def test_paths_are_relative_to_the_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(folder / "set")
    sets = load_recipe(str(folder / "mine.yaml")).preprocess.held_out
    assert sets == {
        "short": HeldOutSettings(source=f"{here}/dev.json"),
        "long": HeldOutSettings(source=here, databases=here, fields={"question": "q"}),
        "bucket": HeldOutSettings(source="s3://b/dev.json"),
    }
    monkeypatch.chdir(folder)
    for override in ("new=set", "new.source=set", "new={source: set}"):
        recipe = load_recipe(str(folder / "mine.yaml"), [f"preprocess.held_out.{override}"])
        assert recipe.preprocess.held_out["new"] == HeldOutSettings(source=here)
    recipe = load_recipe(str(folder / "mine.yaml"), ["preprocess.held_out={new: set}"])
    assert recipe.preprocess.held_out == {"new": HeldOutSettings(source=here)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dk.souce=set", r"held_out\.dk\.souce: unknown key; did you mean source\?"),
        ("dk={databases: set}", r"held_out\.dk\.source: is missing"),
        ("dk=", r"held_out\.dk\.source: .*at least 1 character"),
        ("dk=7", r"held_out\.dk: .*, not 7"),
        ("train=set", r"--set preprocess\.held_out\.train: a held-out set cannot be called train, dev or all, not"),
        ("dk.fields.querry=x", r"held_out\.dk\.fields\.querry"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(str(folder / "mine.yaml"), [f"preprocess.held_out.{override}"])


def test_a_local_run_is_repeated_when_a_set_changes(folder: Path, tmp_path: Path) -> None:
    def key() -> str:
        return data_fingerprint(folder / "mine.yaml", tmp_path)

    before = key()
    assert key() == before
    (folder / "unrelated.json").write_text("{}")
    assert key() == before
    for name in ("dev.json", "d.sqlite", "tables.json"):
        (folder / "set" / name).write_text(json.dumps([{"name": name}]))
        before, changed = key(), before
        assert before != changed


def test_sets_are_uploaded_for_a_cluster(
    folder: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "check_built", lambda train, recipe: None)
    client, started = recording_client()
    base = write_gguf(tmp_path / "base.gguf")

    def submit(*overrides: str) -> None:
        own = (
            f"base_model={base}",
            f"cluster.store=s3://{bucket}",
            "cluster.base_parameters=0",
            "preprocess.held_out.bucket=s3://elsewhere/x",
        )
        recipe = load_recipe(str(folder / "mine.yaml"), [*own, *overrides])
        submitted = submission.Submission(recipe, "CPU", load_pools()["CPU"])
        submission.submit(client, Access("http://kfp", "kubeflow"), submitted)

    message = (
        r"dev\.json: only this file is uploaded, not the databases next to it; set preprocess\.held_out\.short\.data"
    )
    with pytest.raises(InputError, match=message):
        submit()
    here = folder / "set"
    submit(f"preprocess.held_out.short={{source: {here}/dev.json, databases: {here}}}")
    sets = started[-1]["preprocess_settings"]["held_out"]
    assert sets["short"]["source"].startswith(f"s3://{bucket}/inputs/")
    assert sets["short"]["source"].endswith("/dev.json")
    assert sets["long"]["databases"] == sets["long"]["source"] == sets["short"]["databases"]
    assert sets["bucket"]["source"] == "s3://elsewhere/x"
