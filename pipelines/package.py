"""Compile a recipe to a package for Kubeflow Pipelines."""

import tempfile
import warnings
from pathlib import Path

from kfp import compiler

from chatmetrics.components.storage.files import atomic_file
from chatmetrics.pipelines.distillation import distillation
from chatmetrics.pipelines.recipe import Recipe


def compile_package(recipe: Recipe, output: Path) -> None:
    """Write the DAG as KFP YAML with the recipe's values as its parameters' defaults; the same bytes every time.

    Raises:
        StorageError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"kfp\.")
            compiler.Compiler().compile(
                pipeline_func=distillation,
                package_path=str(package),
                pipeline_name=recipe.name,
                pipeline_parameters=recipe.arguments(),
            )
        with atomic_file(output) as file:
            file.write(package.read_bytes())
