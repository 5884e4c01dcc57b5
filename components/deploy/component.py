"""The step as a component of Kubeflow Pipelines."""

from typing import Any, NamedTuple

from kfp import dsl

from chatmetrics.components.image import image


@dsl.component(base_image=image("deploy"), install_kfp_package=False)
def deploy(
    manifest_uri: str,
    settings: dict[str, Any],
    deployment: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
    manifest_sha256: str = "",
    logs_uri: str = "",
) -> NamedTuple("Outputs", [("revision", int), ("endpoint", str), ("digest", str), ("smoke", str)]):  # type: ignore[valid-type]
    """Serve a published model in the cluster. If that fails, the old version keeps serving and the step reports why.

    Args:
        manifest_uri: URI of the manifest of the model that the gate has published.
        settings: the recipe's `deploy` section; see DeploySettings.
        deployment: the revision that serves, its endpoint and its model, as JSON and as metadata.
        summary: the same as Markdown, for KFP's console.
        manifest_sha256: sha256 of this manifest, from the gate. Pods serve no other; empty takes that of the manifest
            as it is now.
        logs_uri: the run's folder, where the step stores its log, its outcome and deployment.json; empty stores none.
    """
    import json
    import signal
    from pathlib import Path

    from chatmetrics.components.deploy import deploy as work
    from chatmetrics.components.deploy.settings import DeploySettings
    from chatmetrics.components.run_record import recorded, with_run_id
    from chatmetrics.components.storage.store import open_store

    # When the pod is terminated, the old version is restored first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parsed = DeploySettings.model_validate(settings)
    with recorded("deploy", logs_uri):
        deployed = work.deploy(parsed, manifest_uri, manifest_sha256)
        description = {
            "revision": deployed.endpoint.revision,
            "endpoint": deployed.endpoint.url,
            "digest": deployed.digest,
            "smoke": deployed.smoke,
            "model": deployed.model,
            "release": deployed.endpoint.release,
            "namespace": deployed.endpoint.namespace,
        }
        text = json.dumps(description, indent=2, ensure_ascii=False)
        if logs_uri:
            open_store(with_run_id(logs_uri)).put_bytes(text.encode(), "deployment.json", overwrite=True)
    Path(deployment.path).write_text(text, encoding="utf-8")
    Path(summary.path).write_text(deployed.markdown(), encoding="utf-8")
    deployment.metadata |= description
    return (deployed.endpoint.revision, deployed.endpoint.url, deployed.digest, deployed.smoke)
