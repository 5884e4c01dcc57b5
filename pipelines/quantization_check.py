"""Whether a recipe's quantization keeps the training, before anything is computed or uploaded."""

from chatmetrics.components.base_model.references import as_folder
from chatmetrics.components.base_model.rounding import check_not_rounded_again
from chatmetrics.components.storage.store import local_path
from chatmetrics.pipelines.recipe import Recipe


def check_quantization(recipe: Recipe) -> None:
    """Check a base model that is on this machine, or a GGUF file; convert checks others after the training.

    Raises:
        InputError: the base had been rounded to the type of `convert.quantization` before, or the GGUF file cannot be
            used.
        ServiceError: the package index does not answer.
    """
    reference = as_folder(recipe.base_model)
    if not reference.startswith("s3://"):
        check_not_rounded_again(local_path(reference), recipe.convert.quantization)
