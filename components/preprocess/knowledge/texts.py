"""Texts and YAML files of people, as descriptions."""

from pathlib import Path
from typing import Any

import yaml

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.descriptions import repeats
from chatmetrics.components.nl2sql.record_files import read_text

MAX_CHARACTERS = 300  # of a description, which every prompt about its table shows


def description(name: str, *texts: str) -> str:
    """One line of at most 300 characters, from the texts that say more than the name of what they describe."""
    lines = (" ".join(text.split()) for text in texts)
    line = "; ".join(dict.fromkeys(line for line in lines if line and not repeats(line, name)))
    return line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 1].rsplit(None, 1)[0]}…"


def read_yaml(path: Path, name: str) -> Any:
    """Read a YAML file, with all values as text: `no` stays "no", and `01` stays "01".

    Raises:
        InputError: it cannot be read, is malformed, or has a key twice; names the file and the line.
    """
    text = read_text(path, name)
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{name}{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise InputError(f"{name}: nested too deeply") from error


class _Loader(yaml.BaseLoader):
    """YAML without aliases, which a few lines can expand to gigabytes, and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not supported; write the value out",
                problem_mark=self.peek_event().start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key that is no text", problem_mark=key.start_mark)
            if key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} occurs twice", problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)
