"""Several sources in recipes, in the keys of local runs, and in what is uploaded for a cluster."""

import json
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.preprocess.settings import SourceSettings
from chatmetrics.pipelines.cluster import submission
from chatmetrics.pipelines.cluster.kubeflow import Access
from chatmetrics.pipelines.pools import load_pools
from chatmetrics.pipelines.recipe import load_recipe
from tests.base_model.gguf_bases import write_gguf
from tests.pipelines.recording_client import recording_client
from tests.pipelines.runs import data_fingerprint

HUB = "hub:shops/questions@main"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recipe, whose paths are relative to it, and two sources."""
    folder = tmp_path / "recipes"
    for name in ("one", "two"):
        (folder / name / "database").mkdir(parents=True)
        item = {"question": f"{name}?", "query": "SELECT 1", "db_id": name}
        (folder / name / "train.json").write_text(json.dumps([item]))
        (folder / name / "tables.json").write_text("[]")
        (folder / name / "database" / f"{name}.sqlite").write_bytes(b"")
    (folder / "mine.yaml").write_text(
        "name: mine\nbase_model: hotel-base\npreprocess:\n  sources:\n    - {source: one}\n"
        f"    - {{source: two/train.json, databases: two/database, weight: 2}}\n    - {{source: '{HUB}'}}\n"
    )
    return folder


def test_paths_are_relative_to_the_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / HUB).mkdir(parents=True)  # is not taken for the dataset on the Hub
    expected = [
        SourceSettings(source=f"{folder}/one"),
        SourceSettings(source=f"{folder}/two/train.json", databases=f"{folder}/two/database", weight=2),
        SourceSettings(source=HUB),
    ]
    assert load_recipe(str(folder / "mine.yaml")).preprocess.sources == expected
    monkeypatch.chdir(folder)
    recipe = load_recipe(str(folder / "mine.yaml"), ["preprocess.sources=[{source: two}]"])
    assert recipe.preprocess.sources == [SourceSettings(source=f"{folder}/two")]
    with pytest.raises(InputError, match=r"preprocess\.sources\.0\.wieght: unknown key; did you mean weight\?"):
        load_recipe(str(folder / "mine.yaml"), ["preprocess.sources=[{source: two, wieght: 2}]"])


def test_a_local_run_is_repeated_when_a_source_changes(folder: Path, tmp_path: Path) -> None:
    def key() -> str:
        return data_fingerprint(folder / "mine.yaml", tmp_path)

    before = key()
    assert key() == before
    (folder / "unrelated.json").write_text("{}")
    assert key() == before
    for name in ("one/train.json", "one/database/one.sqlite", "two/database/two.sqlite", "two/tables.json"):
        (folder / name).write_text(f"[{{}}, {json.dumps(name)}]")
        before, changed = key(), before
        assert before != changed, name


def test_sources_are_uploaded_for_a_cluster(
    folder: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submission, "check_built", lambda train, recipe: None)
    client, started = recording_client()
    base = write_gguf(tmp_path / "base.gguf")

    def submit(*overrides: str) -> None:
        own = (f"base_model={base}", f"cluster.store=s3://{bucket}", "cluster.base_parameters=0")
        recipe = load_recipe(str(folder / "mine.yaml"), [*own, *overrides])
        submission.submit(
            client, Access("http://kfp", "kubeflow"), submission.Submission(recipe, "CPU", load_pools()["CPU"])
        )

    submit()
    first, second, third = started[-1]["preprocess_settings"]["sources"]
    assert all(each["source"].startswith(f"s3://{bucket}/inputs/") for each in (first, second))
    assert second["source"].endswith("/train.json") and second["databases"].startswith(f"s3://{bucket}/inputs/")
    assert (second["weight"], third["source"]) == (2, HUB)
    printed = capsys.readouterr().err
    assert "two/train.json: only this file is uploaded, not tables.json next to it; name its folder" in printed
    assert "will not notice" not in printed
    with pytest.raises(InputError, match=r"train\.json: only this file is uploaded, not the databases next to it"):
        submit(f"preprocess.sources=[{{source: {folder}/two/train.json}}]")
