"""The table of values in the chart's README, from values.yaml: the comment above a value is its description.

python helm/values_table.py            # writes it
python helm/values_table.py --check    # exit status 1 where it is out of date, or a value has no description
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).with_name("chatmetrics-ollama")
BEGIN, END = "<!-- values: made by helm/values_table.py -->", "<!-- end of values -->"


def values_table(text: str) -> str:
    """Render the Markdown table of a values.yaml.

    Args:
        text: its content.
    """
    rows = [f"| `{name}` | {default} | {description} |" for name, default, description in _rows(text)]
    return "\n".join(["| value | default | |", "|---|---|---|", *rows])


def undescribed(text: str) -> list[str]:
    """The values of a values.yaml without a comment above them.

    Args:
        text: its content.
    """
    return [name for name, default, description in _rows(text) if default and not description]


def with_table(readme: str, table: str) -> str:
    """Put the table between its two marks.

    Raises:
        ValueError: the README has no marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _rows(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, default and description of each value; of a group that has a comment, an empty default."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    yield from _rows_below(root, "", text.splitlines())


def _rows_below(node: yaml.MappingNode, path: str, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        name = f"{path}{key.value}"
        comment = _comment_above(key, lines)
        if isinstance(value, yaml.MappingNode) and any(_is_described(child, lines) for child in value.value):
            if comment:
                yield name, "", comment
            yield from _rows_below(value, f"{name}.", lines)
        else:
            yield name, _default(value), comment


def _is_described(child: tuple[yaml.Node, yaml.Node], lines: list[str]) -> bool:
    key, value = child
    if _comment_above(key, lines):
        return True
    return isinstance(value, yaml.MappingNode) and any(_is_described(below, lines) for below in value.value)


def _comment_above(key: yaml.Node, lines: list[str]) -> str:
    line = key.start_mark.line
    found: list[str] = []
    while line and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        found.insert(0, lines[line].strip().lstrip("#").strip())
    return " ".join(found).replace("|", "\\|")


def _default(node: yaml.Node) -> str:
    value = yaml.safe_load(yaml.serialize(node))
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def main() -> int:
    """Write the README's table, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chart", nargs="?", type=Path, default=CHART)
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    values, readme = (given.chart / "values.yaml").read_text("utf-8"), given.chart / "README.md"
    if lacking := undescribed(values):
        print(f"{given.chart}/values.yaml: write a comment above {', '.join(lacking)}", file=sys.stderr)
        return 1
    now = readme.read_text("utf-8")
    wanted = with_table(now, values_table(values))
    if given.check and now != wanted:
        print(f"{readme}: the table is out of date; run python helm/values_table.py", file=sys.stderr)
        return 1
    if now != wanted:
        readme.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
