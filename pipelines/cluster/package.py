"""Compile a recipe to a package for Kubeflow Pipelines; the same package serves all GPU pools."""

import copy
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from chatmetrics.components.console import note
from chatmetrics.components.errors import InputError
from chatmetrics.components.image import image, is_built
from chatmetrics.components.run_record import PLACEHOLDER
from chatmetrics.components.storage.files import atomic_file
from chatmetrics.pipelines.cluster.placement import on_cluster
from chatmetrics.pipelines.distillation import distillation_pipeline
from chatmetrics.pipelines.pools import Pool, load_pools
from chatmetrics.pipelines.recipe import Recipe

IMAGES = ("preprocess", "merge", "convert", "evaluate")  # used by every recipe
DEPLOY_IMAGES = ("deploy", "serve")  # used by a recipe that deploys: the step's image and that of the serving pods


def images_of(recipe: Recipe | None) -> tuple[str, ...]:
    """Return the images in a recipe's package apart from train's; without a recipe, those of every recipe."""
    distill = ("distill",) if recipe and recipe.distill.enabled else ()
    return (*IMAGES, *distill, *(DEPLOY_IMAGES if recipe and recipe.deploy.enabled else ()))


def note_unpinned(train: str, recipe: Recipe | None = None) -> None:
    """Print a note about images that a package names by tag because there is no digest: tags can be overwritten.

    Args:
        train: name of train's image, which depends on the pool.
        recipe: as in `images_of`.
    """
    unpinned = [name for name in (*images_of(recipe), train) if "@" not in image(name)]
    if unpinned:
        note(f"by tag, not by digest: {', '.join(unpinned)}; `chatmetrics images build --push` records digests")


def check_built(train: str, recipe: Recipe | None = None) -> None:
    """Check that a recipe's images were built from the present source; otherwise pods could not pull them.

    Args:
        train: name of train's image, which depends on the pool.
        recipe: as in `images_of`.

    Raises:
        InputError: some were not built; names them.
    """
    missing = [name for name in (*images_of(recipe), train) if not is_built(name)]
    if missing:
        names = " ".join(missing)
        raise InputError(
            f"not built from this source: {', '.join(missing)}; run `chatmetrics images build {names} --registry "
            "REGISTRY --push`, or set CHATMETRICS_IMAGE_DIGESTS to the file that lists the images built elsewhere"
        )


def compile_package(
    recipe: Recipe, output: Path, pool: Pool, cache: bool = True, pools: Mapping[str, Pool] | None = None
) -> None:
    """Write the DAG as KFP YAML, with the recipe's values as defaults of its parameters; the same bytes every time.

    Args:
        recipe: the recipe.
        output: the file to write.
        pool: where train runs, unless a run's parameters name another pool.
        cache: whether KFP may reuse the results of earlier runs of the same pipeline.
        pools: the known pools, for the steps in `cluster.pools`; None: the shipped ones.

    Raises:
        InputError: the size of the base model or a pool in `cluster.pools` is unknown.
        StorageError: the file cannot be written.
    """
    place = on_cluster(recipe, load_pools() if pools is None else pools)
    distill = recipe.distill
    pipeline = distillation_pipeline(place, recipe.deploy.enabled, distill.students, distill.is_self)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"kfp\.")
            compiler.Compiler().compile(
                pipeline_func=pipeline,
                package_path=str(package),
                pipeline_name=recipe.name,
                pipeline_parameters=recipe.arguments() | locations(recipe) | pool.arguments(recipe),
            )
        with atomic_file(output) as file:
            text = _without_comments(package.read_text("utf-8"))
            file.write((text if cache else without_cache(yaml.safe_load_all(text))).encode())


def without_cache(documents: Iterable[dict[str, Any]]) -> str:
    """Return a package with caching disabled for every task; KFP has this option per package, not per run.

    Args:
        documents: a package's documents: the pipeline spec and its platform spec.
    """
    spec, *platforms = documents
    changed: dict[str, Any] = copy.deepcopy(spec)
    dags = [changed["root"]["dag"], *(part["dag"] for part in changed["components"].values() if "dag" in part)]
    for task in (task for dag in dags for task in dag["tasks"].values()):
        task["cachingOptions"] = {}
    return yaml.safe_dump_all([changed, *platforms], allow_unicode=True)


def _without_comments(package: str) -> str:
    """Remove the comments at the start of a package, in which KFP lists mappings in a different order each time."""
    return "".join(dropwhile(lambda line: line.startswith("#"), package.splitlines(keepends=True)))


def locations(recipe: Recipe) -> dict[str, Any]:
    """Return the parameters for where a cluster run stores its results; `{run}` is replaced by the run's id.

    Two runs never share a folder, except for the models and a teacher's answers.
    """
    store = recipe.cluster.store.rstrip("/")
    run = f"{store}/runs/{PLACEHOLDER}"
    return {
        "models_uri": f"{store}/models",
        "merged_uri": f"{run}/merged",
        "checkpoints": f"{run}/checkpoints",
        # Shared by all runs of a recipe's name, so that no answer is paid for twice.
        **({"ledger_uri": f"{store}/teacher/{recipe.name}"} if recipe.distill.enabled else {}),
        "run_uri": run,
        "logs_uri": run,
    }
