"""The language of code and documentation: phrases that have a plain or standard replacement are not used."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("components", "docs", "helm", "images", "pipelines", "tests")
KINDS = {".py", ".md", ".yaml", ".tpl", ".jinja", ".html"}
# The changelog lists the old names of what was renamed.
EXEMPT = {ROOT / "tests" / "test_language.py", ROOT / "CHANGELOG.md"}
EXEMPT_FOLDERS = {ROOT / "pipelines" / "packages"}

# A regular expression, in which a space also matches a line break, and what to write instead.
REPLACEMENTS = {
    "anew": "again",
    "mend(s|ed|ing)?": "fix",
    "examinations?": "acceptance test",
    "doorkeepers?": "access",
    "pupils?": "student",
    "dealt out": "sharded",
    "for want of": "because there is no",
    "to be had": "available",
    "not looked at": "skipped",
    "goes on": "continues, resumes",
    "go(ing)? on from": "resume from",
    "out of memory may come": "can run out of memory",
    "is said": "is reported, is logged",
    "beside": "next to, compared with",
    "held-out form": "unseen wording",
    "held-out value": "unseen value",
    "(table of|shared) rooms": "layers, packages",
    "GiB in all": "GiB total",
    "GiB there": "GiB available",
    "of them computed": "computed tokens per example",
    "(requests|tokens|examples|answers|steps|queries) an? (second|minute|hour|day|step)": "per second, per hour, ...",
    "tokens a question": "tokens per question",
}
# Between two words of a phrase there may be a line break, with the marker of a comment on the next line.
GAP = r"[\s#]+"
PATTERNS = {
    re.compile(rf"(?<![a-z])({phrase.replace(' ', GAP)})(?![a-z])", re.IGNORECASE): replacement
    for phrase, replacement in REPLACEMENTS.items()
}


def checked_files() -> Iterator[Path]:
    yield from sorted(ROOT.glob("*.md"))
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in KINDS and EXEMPT_FOLDERS.isdisjoint(path.parents):
                yield path


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, phrase and replacement of each phrase in a text."""
    for pattern, replacement in PATTERNS.items():
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), replacement


def test_no_phrase_is_used_that_has_a_replacement() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {phrase!r}: write {replacement!r}"
        for path in checked_files()
        if path not in EXEMPT
        for line, phrase, replacement in sorted(findings(path.read_text("utf-8")))
    ]
    if found:
        pytest.fail("\n".join(["docs/architecture.md, Terms, says what to write:", *found]), pytrace=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Training goes on from here.", [(1, "goes on", "continues, resumes")]),
        ("# one\n# is not to\n# be had", [(2, "to # be had", "available")]),
        ("the_pupil = 1", [(1, "pupil", "student")]),
        ("3 requests a second", [(1, "requests a second", "per second, per hour, ...")]),
        ("besides, we recommend what answers a question", []),
    ],
)
def test_phrases_are_found_in_text_and_names(text: str, expected: list[tuple[int, str, str]]) -> None:
    assert list(findings(text)) == expected
