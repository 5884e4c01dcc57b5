"""The merge step as a KFP component."""

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
    round_number: int = 0,
    logs_uri: str = "",
) -> NamedTuple("Outputs", [("model_uri", str), ("provenance", dict[str, str])]):  # type: ignore[valid-type]
    """Merge the adapter into its base model.

    Args:
        settings: the recipe's `merge` section; see MergeSettings.
        base_model: a folder, URI or Hub name.
        adapter: the folder that train wrote.
        output_uri: folder or file:// URI of the merged model; or an s3:// prefix below which it is stored under a hash
            of its content. `{run}` is replaced by the id of the KFP run.
        revision: branch, tag or commit of a Hub name.
        round_number: number of the distillation round; 0 for the last or only round.
        logs_uri: the run's folder, to which the step writes its log and state; empty writes none.

    Returns:
        The folder or URI of the merged model, and the hashes of what it was made from.
    """
    import tempfile
    from pathlib import Path

    from chatmetrics.components.merge.merge import merge, provenance
    from chatmetrics.components.merge.settings import MergeSettings
    from chatmetrics.components.run_record import recorded, with_round, with_run_id
    from chatmetrics.components.storage.mirror import push_folder
    from chatmetrics.components.storage.store import local_path

    parsed = MergeSettings.model_validate(settings)
    output_uri = with_round(output_uri, round_number)
    with recorded(with_round("merge", round_number), logs_uri), tempfile.TemporaryDirectory(prefix="merge-") as scratch:
        is_remote = output_uri.startswith("s3://")
        folder = Path(scratch) / "merged" if is_remote else local_path(output_uri)
        merge(parsed, base_model, Path(adapter.path), folder, revision)
        uri = push_folder(folder, with_run_id(output_uri)) if is_remote else str(folder)
    return uri, provenance(Path(adapter.path))
