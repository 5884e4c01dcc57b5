"""A KFP client that records the parameters of the runs it is asked to start."""

from types import SimpleNamespace
from typing import Any


def recording_client() -> tuple[Any, list[dict[str, Any]]]:
    """The client, and the list to which it adds the parameters of each run."""
    started: list[dict[str, Any]] = []

    def run_pipeline(params: dict[str, Any], **_: object) -> Any:
        started.append(params)
        return SimpleNamespace(run_id="new")

    client: Any = SimpleNamespace(
        run_pipeline=run_pipeline,
        create_experiment=lambda name, namespace: SimpleNamespace(experiment_id="e"),
        list_pipelines=lambda **_: SimpleNamespace(pipelines=[SimpleNamespace(pipeline_id="p")]),
        list_pipeline_versions=lambda *_, **__: SimpleNamespace(
            pipeline_versions=[SimpleNamespace(pipeline_version_id="v")]
        ),
    )
    return client, started
