"""Every import of the code in an image is installed in that image."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from chatmetrics.components.image import IMAGES
from tests.images.locks import installed

COMPONENTS = Path(__file__).parents[2] / "components"
OURS = "chatmetrics.components"
DISTRIBUTIONS = packages_distributions()
STEPS = sorted(path.name for path in COMPONENTS.iterdir() if (IMAGES / path.name).is_dir())
# Imports inside functions that the image's step never calls, or that need no package.
NOT_CALLED = {
    ("convert", "conversion"),  # llama.cpp's converter, which the image contains as files
    ("convert", "cryptography"),  # the gate signs manifests, and only what serves them verifies
    ("merge", "certifi"),  # for HTTP clients; these steps call S3 only, and boto3 brings its own certificates
    ("preprocess", "certifi"),
    # A GGUF base is read where the run is submitted, which stores it as a Hugging Face folder for the pods.
    *((step, "gguf") for step in ("distill", "merge", "preprocess", "train")),
    ("distill", "numpy"),
    ("serve", "xllamacpp"),  # the server of one machine; the pod's engine is Ollama
    ("serve", "rich"),  # `chatmetrics ask` in a terminal
}


@pytest.mark.parametrize("step", STEPS)
def test_each_import_is_installed_in_the_image(step: str) -> None:
    packages = installed(step)
    missing = {
        f"{path.relative_to(COMPONENTS)} imports {name}"
        for path in reachable(step)
        for name in foreign_imports(path)
        if (step, name) not in NOT_CALLED and packages_of(name).isdisjoint(packages)
    }
    assert missing == set()


@pytest.mark.parametrize(("step", "name"), sorted(NOT_CALLED))
def test_exceptions_are_reachable_and_not_installed(step: str, name: str) -> None:
    assert name in {found for path in reachable(step) for found in foreign_imports(path)}
    assert packages_of(name).isdisjoint(installed(step))


def packages_of(name: str) -> set[str]:
    return {canonicalize_name(found) for found in DISTRIBUTIONS.get(name, [name])}


def reachable(step: str) -> set[Path]:
    """The step's modules, and ours that they import, directly or not."""
    seen: set[Path] = set()
    waiting = list((COMPONENTS / step).rglob("*.py"))
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting.extend(found for name in imports(path) if (found := module(name)))
    return seen


def foreign_imports(path: Path) -> set[str]:
    """Top-level names of other projects' packages that a module imports, also inside functions."""
    names = {name.partition(".")[0] for name in imports(path)}
    return names - sys.stdlib_module_names - {"chatmetrics"}


@cache
def imports(path: Path) -> frozenset[str]:
    return frozenset(_imports(ast.parse(path.read_text("utf-8"))))


def _imports(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from _imports(child)


def module(name: str) -> Path | None:
    """The file of one of our modules; none if the name is something in a module, or another project's."""
    if not name.startswith(OURS):
        return None
    path = COMPONENTS.joinpath(*name.removeprefix(OURS).strip(".").split("."))
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)
