"""The reference of all settings, generated from the models: for `chatmetrics settings` and the tables in the READMEs.

    python -m chatmetrics.pipelines.settings_reference          rewrites the tables
    python -m chatmetrics.pipelines.settings_reference --check  names the files whose tables are out of date

A table is between two lines of a Markdown file, where SECTION is a section of a recipe, `recipe` for the keys outside
sections, or `gpu-pool` for the keys of a GPU pool:

    <!-- settings: SECTION -->
    <!-- /settings -->
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.pipelines.pools import Pool
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.validation_errors import did_you_mean

TOP_LEVEL, GPU_POOL = "recipe", "gpu-pool"
CHECKOUT = Path(__file__).resolve().parents[1]
# Folders of the checkout that may have pages of documentation; not .venv, caches or runs.
FOLDERS = ("components", "docs", "helm", "images", "pipelines", "tests")
COMMAND = "python -m chatmetrics.pipelines.settings_reference"
TABLE = re.compile(r"^<!-- settings: (?P<section>\S+) -->\n(?P<rows>.*?)^<!-- /settings -->$", re.MULTILINE | re.DOTALL)
OPENING = re.compile(r"^<!-- settings: ", re.MULTILINE)
TYPES = {"string": "text", "object": "mapping", "boolean": "true or false", "array": "list", "null": "null"}

Schema = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        section: its section, for example `train`.
        key: the key in the section, dotted where it is nested: `synthesis.languages`.
        type: the type and its range, or the allowed values.
        default: the default as YAML; empty if the setting is required.
        meaning: its description.
        values: the allowed values of a choice; empty for any other type.
    """

    section: str
    key: str
    type: str
    default: str
    meaning: str
    values: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The whole key; a recipe's as `--set` takes it."""
        return self.key if self.section == TOP_LEVEL else f"{self.section}.{self.key}"


def recipe_settings() -> list[Setting]:
    """Return the settings of recipes, in the models' order."""
    settings = []
    for path, field in _fields(Recipe.model_json_schema()):
        section, _, key = path.partition(".")
        settings.append(_setting(section, key, field) if key else _setting(TOP_LEVEL, path, field))
    return settings


def pool_settings() -> list[Setting]:
    """Return the keys of a GPU pool in a file of pools."""
    return [_setting(GPU_POOL, key, field) for key, field in _fields(Pool.model_json_schema())]


def find_settings(name: str) -> list[Setting]:
    """Return the settings of a section, or below a key such as `distill.synthesis`, or those with this key.

    Raises:
        InputError: there is no such section or key; names the closest.
    """
    settings = [*recipe_settings(), *pool_settings()]
    found = [it for it in settings if name in (it.section, it.path, it.key) or it.path.startswith(f"{name}.")]
    if not found:
        sections = list(dict.fromkeys(setting.section for setting in settings))
        known = [setting.path for setting in settings] if "." in name else sections
        raise InputError(f"settings {name}: no such section or key; {did_you_mean(name, known)}")
    return found


def updated(text: str, where: Path) -> str:
    """Return a Markdown page with its tables of settings generated again.

    Raises:
        InputError: a table has no closing line, or names an unknown section.
    """
    if len(OPENING.findall(text)) != len(TABLE.findall(text)):
        raise InputError(f"{where}: a `<!-- settings: SECTION -->` line has no `<!-- /settings -->` line after it")
    try:
        return TABLE.sub(_table, text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def pages(checkout: Path) -> Iterator[Path]:
    """Yield the Markdown pages of a checkout."""
    yield from sorted(checkout.glob("*.md"))
    for folder in FOLDERS:
        yield from sorted((checkout / folder).rglob("*.md"))


def outdated_pages(checkout: Path) -> dict[Path, str]:
    """Return the pages whose tables are out of date, with their new text."""
    texts = {page: page.read_text("utf-8") for page in pages(checkout)}
    new_texts = {page: updated(text, page) for page, text in texts.items()}
    return {page: text for page, text in new_texts.items() if text != texts[page]}


def main() -> None:
    """Rewrite the tables, or check them."""
    parser = argparse.ArgumentParser(description="Generate the tables of settings in the Markdown pages of a checkout.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table is out of date")
    check = parser.parse_args().check
    try:
        outdated = outdated_pages(CHECKOUT)
    except InputError as error:
        console.error(error)
        sys.exit(error.exit_status)
    for page, text in outdated.items():
        if check:
            console.error(f"{page.relative_to(CHECKOUT)}: a table of settings is out of date; run {COMMAND}")
        else:
            page.write_text(text, "utf-8")
            print(page.relative_to(CHECKOUT))
    sys.exit(1 if check and outdated else 0)


def _fields(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield the key and the JSON schema of each field of a model; for a nested model its fields, with dotted keys."""
    definitions = schema.get("$defs", {})
    for name, field in schema["properties"].items():
        if "$ref" in field:
            nested = definitions[field["$ref"].removeprefix("#/$defs/")]
            for key, nested_field in _fields({**nested, "$defs": definitions}):
                yield f"{name}.{key}", nested_field
        else:
            yield name, field


def _setting(section: str, key: str, field: Schema) -> Setting:
    default = _as_yaml(field["default"]) if "default" in field else ""
    values = tuple(map(str, field.get("enum", ())))
    return Setting(section, key, _type(field), default, field.get("description", ""), values)


def _type(field: Schema) -> str:
    if "enum" in field:
        return _alternatives(field["enum"])
    if "const" in field:
        return str(field["const"])
    if "anyOf" in field:
        return _alternatives(_type(option) for option in field["anyOf"])
    if "$ref" in field:
        return TYPES["object"]
    if field["type"] == "array" and "items" in field:
        return f"list: {_type(field['items'])}"
    name: str = field["type"]
    return TYPES.get(name, name) + _range(field)


def _range(field: Schema) -> str:
    if "minimum" in field and "maximum" in field:
        return f", {field['minimum']} to {field['maximum']}"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return "".join(f", {words} {field[bound]}" for bound, words in bounds.items() if bound in field)


def _alternatives(options: Iterable[str]) -> str:
    *first, last = map(str, options)
    return f"{', '.join(first)} or {last}" if first else last


def _as_yaml(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _table(match: re.Match[str]) -> str:
    section = match["section"]
    settings = [setting for setting in find_settings(section) if setting.section == section]
    rows = "".join(
        f"| `{setting.key}` | {_code(setting.default)} | {_cell(_meaning_and_values(setting))} |\n"
        for setting in settings
    )
    return f"<!-- settings: {section} -->\n| key | default | meaning |\n|---|---|---|\n{rows}<!-- /settings -->"


def _meaning_and_values(setting: Setting) -> str:
    """The meaning; with the values of a choice, unless it names them all."""
    if all(value in setting.meaning for value in setting.values):
        return setting.meaning
    return f"{setting.meaning} ({_alternatives(f'`{value}`' for value in setting.values)})"


def _code(default: str) -> str:
    return f"`{default}`" if default else "required"


def _cell(text: str) -> str:
    """Escape what Markdown would read as the end of a cell or, outside code, as HTML."""
    parts = text.replace("|", "\\|").split("`")  # every second part is code
    return "`".join(part if number % 2 else part.replace("<", "\\<") for number, part in enumerate(parts))


if __name__ == "__main__":
    main()
