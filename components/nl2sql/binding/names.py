"""How near two names are."""

import re
from difflib import SequenceMatcher
from functools import lru_cache

# Costs of near names; see `distance`.
SAME_LETTERS = 0.5
SAME_WORDS = 0.6
BEGINNING = 1.06
SAME_WITHOUT_TABLE = 1.05
SIMILAR = 1.1
PART_OF_WORDS = 2.1

LEAST_SIMILARITY = 0.8  # of words
LEAST_SIMILARITY_OF_NAMES = 0.85
SHORTEST_BEGINNING = 4
LONGEST_NAME = 64  # comparing names takes quadratic time


@lru_cache(maxsize=16384)
def distance(wanted: str, name: str, table: str = "") -> float | None:
    """How far a name is from the wanted one; None if the two are not near.

    Args:
        wanted: the name in a query.
        name: a name in the schema.
        table: the name's table, which one of the two may contain: `singer_name` and the column `name` of `singer`.
    """
    if max(len(wanted), len(name)) > LONGEST_NAME:
        return None
    if _letters(wanted) == _letters(name):
        return SAME_LETTERS
    first, second = _words(wanted), _words(name)
    if first == second:
        return SAME_WORDS
    own = set(_words(table))
    if own and {*first} - own == {*second} - own:
        return SAME_WITHOUT_TABLE
    if _begins(wanted.lower(), name.lower()):
        return BEGINNING
    if _is_similar(first, second):
        return SIMILAR
    if first and second and ({*first} < {*second} or {*second} < {*first}):
        return PART_OF_WORDS
    return None


def _begins(first: str, second: str) -> bool:
    short, long = sorted((first, second), key=len)
    return len(short) >= SHORTEST_BEGINNING and long.startswith(short) and long[len(short)].isalpha()


def _is_similar(first: list[str], second: list[str]) -> bool:
    """Whether names differ by a slip of the pen. `start_date` and `start_time` do not, although they are similar."""
    if len(first) != len(second):
        return _similarity("".join(first), "".join(second)) >= LEAST_SIMILARITY_OF_NAMES
    return all(
        one == other or _similarity(one, other) >= LEAST_SIMILARITY for one, other in zip(first, second, strict=True)
    )


def _similarity(first: str, second: str) -> float:
    """Twice the number of common letters, as a share of all letters; 1 for letters in another order."""
    return 1.0 if sorted(first) == sorted(second) else SequenceMatcher(None, first, second).ratio()


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without a plural s."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name)
    return [word.removesuffix("s") or word for word in re.findall(r"\w+", spaced.lower())]
