"""Texts and YAML files of people, as descriptions."""

from typing import Any

import yaml

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.descriptions import repeats

MAX_CHARACTERS = 300  # of a description, which every prompt about its table shows
MAX_ALIASED = 100_000  # values in a file, with those that aliases repeat


def description(name: str, *texts: str) -> str:
    """One line, from the texts that say more than the name of what they describe; if it is cut, that is logged."""
    lines = (" ".join(text.encode(errors="replace").decode().split()) for text in texts)
    line = "; ".join(dict.fromkeys(line for line in lines if line and not repeats(line, name)))
    if len(line) <= MAX_CHARACTERS:
        return line
    console.info(f"preprocess: what is known about {name} is cut to {MAX_CHARACTERS} of {len(line)} characters")
    return f"{line[: MAX_CHARACTERS - 1].rsplit(None, 1)[0]}…"


def parse_yaml(text: str, name: str) -> Any:
    """Parse the text of a YAML file, with all values as text: `no` stays "no", and `01` stays "01".

    Raises:
        InputError: it is malformed, or has a key twice; names the file and the line.
    """
    try:
        return _loaded(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{name}{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise InputError(f"{name}: nested too deeply") from error


def _loaded(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """The number of values in a node, with those that aliases repeat, of which a few lines can have billions."""
    if id(node) not in counted:
        counted[id(node)] = MAX_ALIASED + 1  # an alias of itself
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
        counted[id(node)] = 1 + sum(_count(each, counted) for pair in pairs for each in pair)
        if counted[id(node)] > MAX_ALIASED:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_ALIASED} values", problem_mark=node.start_mark)
    return counted[id(node)]


class _Loader(yaml.BaseLoader):
    """YAML without repeated keys and merged mappings."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key that is no text", problem_mark=key.start_mark)
            if key.value == "<<":
                raise yaml.MarkedYAMLError(
                    problem="merge keys (<<) are not supported; write the values out", problem_mark=key.start_mark
                )
            if key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} occurs twice", problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)
