"""The tests that pages name exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("docs", "helm", "components", "README.md", "SECURITY.md", "CONTRIBUTING.md")


def pages() -> list[Path]:
    return [page for name in PAGES for page in ([ROOT / name] if name.endswith(".md") else (ROOT / name).rglob("*.md"))]


def test_pages_name_tests_that_exist() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"def (test_\w+)\(", sources))
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    named = {name for page in pages() for name in re.findall(r"`(test_\w+)`", page.read_text("utf-8"))}
    assert len(named) > 60
    assert named - defined - files == set()
