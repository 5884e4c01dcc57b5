"""The check of `chatmetrics doctor --base-model`."""

from chatmetrics.components.errors import InputError


def checked_base_model(reference: str, revision: str = "") -> str:
    """Download a base model if it is not on this machine, check it, and return a line about it.

    Args:
        reference: a folder, URI or Hub name; see `local_model`.
        revision: branch, tag or commit of a Hub name.

    Raises:
        InputError: it cannot be used; says why. Or a package that checks it is not installed.
        ServiceError: the Hub does not answer.
        StorageError: the bucket or the disk failed.
    """
    try:
        from chatmetrics.components.base_model.check import check_base_model
        from chatmetrics.components.base_model.references import local_model

        return f"ok       base model: {check_base_model(local_model(reference, revision))}"
    except ModuleNotFoundError as error:
        raise InputError(f"--base-model: the check needs {error.name}; install chatmetrics[train]") from error
