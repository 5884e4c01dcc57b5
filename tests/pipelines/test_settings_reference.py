"""The reference of all settings: the command `settings`, and the tables in the README files."""

import subprocess
import sys
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.pipelines.recipe import Recipe, load_recipe
from chatmetrics.pipelines.settings_reference import CHECKOUT, find_settings, outdated_pages, recipe_settings, updated
from tests.command import finished_process

TABLE = """# merge

<!-- settings: merge -->
an old row
<!-- /settings -->

The end.
"""


def recipe_keys(values: dict[str, object], prefix: str = "") -> set[str]:
    """The dotted keys of a recipe as JSON, without the empty mappings' own."""
    keys = set()
    for key, value in values.items():
        keys |= recipe_keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key}
    return keys


def test_every_key_of_a_recipe_is_listed_with_its_type_default_and_meaning() -> None:
    settings = {setting.path: setting for setting in recipe_settings()}
    recipe = load_recipe("hotel-demo").model_dump(mode="json", by_alias=True)
    assert set(settings) == recipe_keys(recipe)
    assert all(setting.type and setting.meaning for setting in settings.values())
    assert {path for path, setting in settings.items() if not setting.default} == {"name", "base_model"}


def test_types_name_ranges_and_values() -> None:
    settings = {setting.path: setting for setting in recipe_settings()}
    described = {path: (settings[path].type, settings[path].default) for path in settings}
    assert described["train.learning_rate"] == ("number, above 0", "5e-05")
    assert described["distill.samples"] == ("integer, 1 to 100", "4")
    assert described["preprocess.schema"] == ("none, ddl or m-schema", "ddl")
    assert described["evaluate.gate_teacher"] == ("number, 0 to 1 or null", "null")
    assert described["distill.synthesis.languages"] == ("list: text", '["English"]')
    assert described["train.lora_targets"] == ("all-linear or list: text", "all-linear")
    assert described["cluster.requests"] == ("mapping", "{}")
    assert described["distill.base_url"] == ("text", '""')


def test_defaults_can_be_set() -> None:
    overrides = [f"{it.path}={it.default}" for it in recipe_settings() if it.default]
    kept = ("preprocess.source", "preprocess.format", "preprocess.tokenizer")
    chosen = [override for override in overrides if not override.startswith(kept)]
    recipe = load_recipe("spider-7b", chosen)
    assert recipe.train == Recipe.model_fields["train"].default
    assert recipe.cluster == Recipe.model_fields["cluster"].default


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("merge", ["merge.max_shard_size", "merge.tolerance", "merge.half_tolerance"]),
        ("recipe", ["name", "base_model", "revision", "question", "question_database"]),
        ("train.epochs", ["train.epochs"]),
        ("query_seconds", ["preprocess.query_seconds", "distill.query_seconds", "evaluate.query_seconds"]),
        ("batch_size", ["train.batch_size", "gpu-pool.batch_size"]),
    ],
)
def test_settings_are_found_by_section_or_key(name: str, keys: list[str]) -> None:
    assert [setting.path for setting in find_settings(name)] == keys


def test_settings_are_found_by_nested_section() -> None:
    assert {setting.path.rpartition(".")[0] for setting in find_settings("distill.synthesis")} == {"distill.synthesis"}


@pytest.mark.parametrize(
    ("name", "closest"),
    [("trian", "train"), ("distil", "distill"), ("train.epoch", "train.epochs"), ("gpu_pool", "gpu-pool")],
)
def test_an_unknown_section_is_3_and_names_the_closest(name: str, closest: str) -> None:
    done = finished_process("settings", name)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"error: settings {name}: no such section or key; did you mean {closest}?\n"


def test_a_pipe_gets_one_whole_line_per_setting() -> None:
    done = finished_process("settings")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [setting.path for setting in recipe_settings()]
    assert all(line.endswith(setting.meaning) for line, setting in zip(lines, recipe_settings(), strict=True))


def test_a_page_gets_a_table_between_the_markers_and_keeps_the_rest() -> None:
    text = updated(TABLE, Path("README.md"))
    before, rest = text.split("<!-- settings: merge -->\n")
    rows, after = rest.split("<!-- /settings -->")
    assert (before, after) == ("# merge\n\n", "\n\nThe end.\n")
    heading, rule, first, *_ = rows.splitlines()
    assert (heading, rule) == ("| key | default | meaning |", "|---|---|---|")
    assert first.startswith("| `max_shard_size` | `5GB` | ")
    assert updated(text, Path("README.md")) == text


def test_a_table_has_the_values_of_a_choice_and_escapes_html() -> None:
    text = updated(
        "<!-- settings: recipe -->\n<!-- /settings -->\n<!-- settings: preprocess -->\n<!-- /settings -->", Path()
    )
    assert r"MODELS/\<name>/\<version>" in text
    [row] = [row for row in text.splitlines() if row.startswith("| `schema` ")]
    assert all(value in row for value in ("none", "ddl", "m-schema"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE.replace("<!-- /settings -->", ""), "has no `<!-- /settings -->` line"),
        (TABLE.replace("merge -->", "mrge -->"), "settings mrge: no such section or key; did you mean merge?"),
    ],
)
def test_a_table_that_cannot_be_generated_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        updated(text, Path("README.md"))
    assert message in str(caught.value)


def test_an_outdated_page_is_named(tmp_path: Path) -> None:
    page = tmp_path / "components" / "merge" / "README.md"
    page.parent.mkdir(parents=True)
    page.write_text(TABLE)
    (tmp_path / "README.md").write_text("no table")
    assert list(outdated_pages(tmp_path)) == [page]
    page.write_text(outdated_pages(tmp_path)[page])
    assert outdated_pages(tmp_path) == {}


def test_the_tables_of_the_checkout_are_up_to_date() -> None:
    command = [sys.executable, "-m", "chatmetrics.pipelines.settings_reference", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
