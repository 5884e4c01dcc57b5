"""The merge step's face to KFP."""

from typing import Any, NamedTuple

from kfp import dsl

from chatmetrics.components.image import image


@dsl.component(base_image=image("merge"), install_kfp_package=False)
def merge(
    settings: dict[str, Any],
    base_model: str,
    adapter: dsl.Input[dsl.Model],
    output_uri: str,
    revision: str = "",
) -> NamedTuple("Outputs", [("model_uri", str), ("provenance", dict[str, str])]):  # type: ignore[valid-type]
    """Merge the adapter into its base model.

    Args:
        settings: the recipe's `merge` section; see MergeSettings.
        base_model: a folder, URI or Hub name.
        adapter: the folder that train wrote.
        output_uri: folder or file:// URI for the merged model.
        revision: branch, tag or commit of a Hub name.

    Returns:
        The folder of the merged model, and the hashes of what it was made from.
    """
    from pathlib import Path

    from chatmetrics.components.merge.merge import merge, provenance
    from chatmetrics.components.merge.settings import MergeSettings
    from chatmetrics.components.storage.store import local_path

    folder = local_path(output_uri)
    merge(MergeSettings.model_validate(settings), base_model, Path(adapter.path), folder, revision)
    return str(folder), provenance(Path(adapter.path))
