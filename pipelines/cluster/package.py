"""Compile a recipe to a package for Kubeflow Pipelines: one package, whatever the pool that train runs on."""

import copy
import sys
import tempfile
import warnings
from collections.abc import Iterable
from itertools import dropwhile
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from chatmetrics.components.errors import InputError
from chatmetrics.components.image import image, is_built
from chatmetrics.components.run_record import PLACEHOLDER
from chatmetrics.components.storage.files import atomic_file
from chatmetrics.pipelines.cluster.placement import on_cluster
from chatmetrics.pipelines.distillation import distillation_pipeline
from chatmetrics.pipelines.pools import Pool
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.resources import requests_of

IMAGES = ("preprocess", "merge", "convert", "evaluate")  # of every recipe
DEPLOY_IMAGES = ("deploy", "serve")  # of a recipe that deploys: the step's, and that of the pods which serve


def images_of(recipe: Recipe | None) -> tuple[str, ...]:
    """The images that a recipe's package names beside that of train; without a recipe those that every one does."""
    distill = ("distill",) if recipe and recipe.distill.enabled else ()
    return (*IMAGES, *distill, *(DEPLOY_IMAGES if recipe and recipe.deploy.enabled else ()))


def say_unpinned(train: str, recipe: Recipe | None = None) -> None:
    """Say which images a package names by their tag, for want of a digest: the tag could be pushed anew.

    Args:
        train: the image of train, which differs from pool to pool.
        recipe: as of `images_of`.
    """
    named = (*images_of(recipe), train)
    if unpinned := [step for step in named if "@" not in image(step)]:
        hint = "`chatmetrics images build --push` records digests"
        print(f"note: by tag, not by digest: {', '.join(unpinned)}; {hint}", file=sys.stderr, flush=True)


def check_built(train: str, recipe: Recipe | None = None) -> None:
    """See that the images of this very source were built: pods would wait for them in vain, or get somebody else's.

    Args:
        train: the image of train, which differs from pool to pool.
        recipe: as of `images_of`.

    Raises:
        InputError: names those that were not.
    """
    if missing := [step for step in (*images_of(recipe), train) if not is_built(step)]:
        names = " ".join(missing)
        raise InputError(
            f"not built from this source: {', '.join(missing)}; run `chatmetrics images build {names} --registry "
            "REGISTRY --push`, or set CHATMETRICS_IMAGE_DIGESTS to the file of what was built"
        )


def compile_package(recipe: Recipe, output: Path, pool: Pool, cache: bool = True) -> None:
    """Write the DAG as KFP YAML with the recipe's values as its parameters' defaults; the same bytes every time.

    Args:
        recipe: the recipe.
        output: the file.
        pool: where train runs unless a run's parameters say otherwise.
        cache: whether KFP may take over what an earlier run of the same pipeline has made.

    Raises:
        InputError: the size of the base model is unknown.
        StorageError: the file cannot be written.
    """
    place = on_cluster(recipe.cluster, requests_of(recipe), recipe.deploy.secret, recipe.distill.api_key_variable)
    pipeline = distillation_pipeline(place, with_deploy=recipe.deploy.enabled, rounds=recipe.rounds)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"kfp\.")
            compiler.Compiler().compile(
                pipeline_func=pipeline,
                package_path=str(package),
                pipeline_name=recipe.name,
                pipeline_parameters=recipe.arguments() | places(recipe) | pool.arguments(recipe),
            )
        with atomic_file(output) as file:
            text = _without_comments(package.read_text("utf-8"))
            file.write((text if cache else without_cache(yaml.safe_load_all(text))).encode())


def without_cache(documents: Iterable[dict[str, Any]]) -> str:
    """A package whose tasks all run anew: KFP keeps that choice in the package, not in a run.

    Args:
        documents: the pipeline spec and what it says of platforms, as read from a package.
    """
    spec, *platforms = documents
    changed: dict[str, Any] = copy.deepcopy(spec)
    dags = [changed["root"]["dag"], *(part["dag"] for part in changed["components"].values() if "dag" in part)]
    for task in (task for dag in dags for task in dag["tasks"].values()):
        task["cachingOptions"] = {}
    return yaml.safe_dump_all([changed, *platforms], allow_unicode=True)


def _without_comments(package: str) -> str:
    """A package without the comments that it begins with: there, mappings are in another order each time."""
    return "".join(dropwhile(lambda line: line.startswith("#"), package.splitlines(keepends=True)))


def places(recipe: Recipe) -> dict[str, Any]:
    """Return where a run on a cluster keeps what it makes; two runs never share a folder."""
    store = recipe.cluster.store.rstrip("/")
    run = f"{store}/runs/{PLACEHOLDER}"
    return {
        "models_uri": f"{store}/models",
        "merged_uri": f"{run}/merged",
        "checkpoints": f"{run}/checkpoints",
        # Of all runs of this name: what was paid for once is not paid for again.
        **({"ledger_uri": f"{store}/teacher/{recipe.name}"} if recipe.distill.enabled else {}),
        "run_uri": run,
        "logs_uri": run,
    }
