"""The command `settings`: every key of a recipe, with its type, default and meaning."""

import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from chatmetrics.pipelines.cli.options import RECIPES

if TYPE_CHECKING:
    from chatmetrics.pipelines.settings_reference import Setting

app = typer.Typer()


def matching_sections(incomplete: str) -> Iterator[str]:
    """Yield the sections that begin with what was typed."""
    from chatmetrics.pipelines.settings_reference import pool_settings, recipe_settings

    sections = dict.fromkeys(setting.section for setting in (*recipe_settings(), *pool_settings()))
    return (section for section in sections if section.startswith(incomplete))


@app.command(epilog="Example: chatmetrics settings train", rich_help_panel=RECIPES)
def settings(
    section: Annotated[
        str,
        typer.Argument(
            metavar="[SECTION]",
            help="Section or key of a recipe, such as train or distill.synthesis; `recipe` for the keys outside "
            "sections; `gpu-pool` for the keys of a GPU pool; default: the whole recipe",
            autocompletion=matching_sections,
        ),
    ] = "",
) -> None:
    """List the settings of recipes, with type, default and meaning."""
    from chatmetrics.pipelines.settings_reference import find_settings, recipe_settings

    found = find_settings(section) if section else recipe_settings()
    if sys.stdout.isatty():
        _print_for_people(found, shutil.get_terminal_size().columns)
    else:
        _print_lines(found)


def _print_for_people(settings: "list[Setting]", width: int) -> None:
    """Print a heading and the wrapped meaning of each setting."""
    for setting in settings:
        print(f"{typer.style(setting.path, bold=True)}  {setting.type}; {_default(setting)}")
        print(textwrap.fill(setting.meaning, width, initial_indent="    ", subsequent_indent="    "))


def _print_lines(settings: "list[Setting]") -> None:
    """Print one line per setting in aligned columns, however long it is."""
    rows = [(setting.path, setting.type, _default(setting)) for setting in settings]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, setting in zip(rows, settings, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([*cells, setting.meaning]))


def _default(setting: "Setting") -> str:
    return f"default {setting.default}" if setting.default else "required"
