"""Submitting a recipe to a cluster: inputs to the store, the package to KFP, a run or a schedule."""

import hashlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kfp import Client

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.image import image
from chatmetrics.components.storage.mirror import push_folder
from chatmetrics.components.storage.models import fingerprint
from chatmetrics.components.storage.store import Store, open_store
from chatmetrics.pipelines.cluster.kubeflow import Access, api_errors
from chatmetrics.pipelines.cluster.package import check_built, compile_package, images_of, places, without_cache
from chatmetrics.pipelines.estimate import check_pool
from chatmetrics.pipelines.pools import DEFAULT, Pool, load_pools
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.resources import billions_of_parameters

ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
SUBMITTED = "submitted.json"
CRON_FIELDS = 5


@dataclass(frozen=True)
class Submission:
    """What is submitted, and how.

    Attributes:
        recipe: the recipe, with local paths made absolute.
        pool_name: where train runs.
        pool: the same.
        experiment: of KFP, that the run is listed under.
        cache: take over the results of unchanged steps of earlier runs.
    """

    recipe: Recipe
    pool_name: str
    pool: Pool
    experiment: str = "chatmetrics"
    cache: bool = True


def submit(client: Client, access: Access, submission: Submission) -> str:
    """Start a run and return its id.

    Local inputs (a folder as base model, questions, databases) go to the store first, under a name of their content.

    Raises:
        InputError: the recipe cannot run on that pool.
        ServiceError: KFP refused.
        StorageError: the store refused.
    """
    recipe, arguments = _prepare(submission)
    package = _package(recipe, submission)
    with _quietly(access):
        run = client.run_pipeline(
            experiment_id=_experiment(client, access, submission.experiment),
            job_name=_job_name(recipe, submission.pool_name),
            params=arguments,
            service_account=recipe.cluster.service_account or None,
            **_uploaded(client, access, recipe.name, package),
        )
    record = {
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        "pool": submission.pool_name,
        "fingerprints": {name: arguments[name] for name in ("base_fingerprint", "data_fingerprint")},
        "images": {step: image(step) for step in images_of(recipe)} | {"train": arguments["train_image"]},
        "chatmetrics": version("chatmetrics"),
    }
    _note(run_folder(arguments["run_uri"], run.run_id), record)
    return str(run.run_id)


def schedule(client: Client, access: Access, submission: Submission, cron: str) -> str:
    """Have KFP start such a run again and again, and return the id of the schedule.

    Such runs take nothing from KFP's cache, which would not notice that their data have changed.

    Args:
        client: of KFP.
        access: the same.
        submission: what is run.
        cron: minute, hour, day of month, month, day of week: `0 3 * * 0` is Sundays at three, in the cluster's time.

    Raises:
        InputError: not five fields; else as `submit`.
    """
    if len(cron.split()) != CRON_FIELDS:
        raise InputError(f"--schedule '{cron}': write minute hour day month weekday, as in '0 3 * * 0'")
    recipe, arguments = _prepare(submission)
    package = _package(recipe, replace(submission, cache=False))
    with _quietly(access):
        recurring = client.create_recurring_run(
            experiment_id=_experiment(client, access, submission.experiment),
            job_name=_job_name(recipe, submission.pool_name),
            cron_expression=f"0 {cron}",  # KFP's begins with seconds
            no_catchup=True,
            params=arguments,
            service_account=recipe.cluster.service_account or None,
            **_uploaded(client, access, recipe.name, package),
        )
    return str(recurring.recurring_run_id)


def resume(client: Client, access: Access, run: Any) -> str:
    """Start a run that goes on from the last checkpoint of one that failed or was cancelled; returns its id.

    Raises:
        InputError: the run has not ended, or ended well.
        ServiceError: KFP refused.
    """
    if run.state not in ENDED:
        raise InputError(f"{run.run_id} is {run.state}: wait for it, or `chatmetrics cancel` it first")
    if run.state == "SUCCEEDED":
        raise InputError(f"{run.run_id} succeeded: there is nothing to resume; `chatmetrics reproduce` runs it again")
    run_store(run)
    parameters = dict(run.runtime_config.parameters)
    own = run_folder(parameters["checkpoints"], run.run_id)
    # Else it came no further than the run that it resumed, if it did.
    if any("checkpoint-" in key for key in open_store(own).list("")):
        parameters["resume_from"] = own
    ids = _version_of(run)
    return _again(client, access, run, parameters, f"{run.display_name} resumed", ids)


def reproduce(client: Client, access: Access, run: Any) -> str:
    """Start the same run again, nothing taken from the cache; returns its id.

    The package names images by digest, the parameters hold recipe and fingerprints; the base and the data are looked
    at again, and a run on others would not be the same.

    Raises:
        InputError: the base model or the data have changed since.
        ServiceError: KFP refused.
    """
    run_store(run)
    ids = _version_of(run)
    parameters = dict(run.runtime_config.parameters)
    parameters["resume_from"] = ""
    now = _fingerprints(parameters)
    for name, value in now.items():
        about = name.removesuffix("_fingerprint")
        if parameters[name] and not value:
            raise InputError(f"{run.run_id}: the {about} cannot be looked at from here, so it may have changed")
        if parameters[name] != value:
            raise InputError(f"{run.run_id}: the {about} is no longer what it was, so the run cannot be reproduced")
    with _quietly(access):
        kept = client.get_pipeline_version(ids["pipeline_id"], ids["version_id"]).pipeline_spec
        package = without_cache([kept["pipeline_spec"], {"platforms": kept["platform_spec"]["platforms"]}]).encode()
        ids = _uploaded(client, access, kept["pipeline_spec"]["pipelineInfo"]["name"], package)
    return _again(client, access, run, parameters, f"{run.display_name} reproduced", ids)


def run_folder(uri: str, run_id: str) -> str:
    """A URI of the pipeline's parameters, for a run."""
    return uri.replace("{run}", run_id)


def run_store(run: Any) -> Store:
    """The folder of a run in the store.

    Raises:
        InputError: the run is none of ours.
    """
    parameters = run.runtime_config.parameters if run.runtime_config else {}
    if "run_uri" not in (parameters or {}):
        raise InputError(f"{run.run_id}: was not submitted by chatmetrics")
    return open_store(run_folder(parameters["run_uri"], run.run_id))


def run_url(access: Access, run_id: str) -> str:
    """Where KFP's console shows a run."""
    return f"{access.url}/#/runs/details/{run_id}"


def _submitted(run: Any) -> dict[str, Any]:
    """What a run was made of, as it was noted when it was submitted; empty when the note is not to be had."""
    try:
        return dict(json.loads(run_store(run).read_bytes(SUBMITTED)))
    except StorageError as error:
        print(f"warning: what the run was made of is not to be had: {error}", file=sys.stderr, flush=True)
        return {}


def _prepare(submission: Submission) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with its inputs in the store, and the pipeline's arguments."""
    check_built(submission.pool.image, submission.recipe)
    check_pool(submission.recipe, submission.pool_name, submission.pool)
    recipe = _with_inputs_in_store(submission.recipe)
    arguments = recipe.arguments() | places(recipe) | submission.pool.arguments(recipe)
    prints = _fingerprints(arguments)
    return recipe, arguments | prints


def _with_inputs_in_store(recipe: Recipe) -> Recipe:
    inputs = f"{recipe.cluster.store.rstrip('/')}/inputs"
    source = Path(recipe.preprocess.source).expanduser() if recipe.preprocess.source else None
    if source and source.is_file() and not recipe.preprocess.databases:
        raise InputError(f"{source}: what lies beside a file does not go to the cluster; set preprocess.databases too")

    def stored(reference: str) -> str:
        path = Path(reference).expanduser()
        if not reference or "://" in reference or not path.exists():
            return reference  # empty, a URI, a Hub name or a path in a claim
        print(f"submit: {path} goes to {inputs}", file=sys.stderr, flush=True)
        return push_folder(path, inputs) if path.is_dir() else _push_file(path, inputs)

    # The size of a base is seen in its files here, and no longer in its name there.
    cluster = recipe.cluster.model_copy(update={"base_parameters": billions_of_parameters(recipe)})
    preprocess = recipe.preprocess.model_copy(
        update={name: stored(getattr(recipe.preprocess, name)) for name in ("source", "databases", "tokenizer")}
    )
    distill = recipe.distill.model_copy(update={"unlabeled_questions": stored(recipe.distill.unlabeled_questions)})
    parts = {"preprocess": preprocess, "distill": distill, "cluster": cluster}
    return recipe.model_copy(update={"base_model": stored(recipe.base_model), **parts})


def _push_file(path: Path, uri: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.absolute())
        return f"{push_folder(Path(folder), uri)}/{path.name}"


def _fingerprints(arguments: dict[str, Any]) -> dict[str, str]:
    """What makes KFP's cache see that files have changed; what we cannot see is said and left out."""
    preprocess, distill = arguments["preprocess_settings"], arguments.get("distill_settings") or {}

    def seen(*references: tuple[str, str]) -> str:
        try:
            return "+".join(fingerprint(*reference) for reference in references if reference[0])
        except (InputError, StorageError) as error:
            print(f"warning: KFP's cache will not notice changes of it: {error}", file=sys.stderr, flush=True)
            return ""

    tokenizer = (preprocess.get("tokenizer", ""), preprocess.get("tokenizer_revision", ""))
    named = (preprocess.get("source"), preprocess.get("databases"), distill.get("unlabeled_questions"))
    data = [(name or "", "") for name in named]
    base = (arguments["base_model"], arguments["revision"])
    return {"base_fingerprint": seen(base), "data_fingerprint": seen(*data, tokenizer)}


def _package(recipe: Recipe, submission: Submission) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        # The default pool, whatever the run's: its parameters say that, and one package serves all.
        compile_package(recipe, path, load_pools()[DEFAULT], submission.cache)
        return path.read_bytes()


def _uploaded(client: Client, access: Access, name: str, package: bytes) -> dict[str, str]:
    """The ids of the pipeline of that name and of the version that is this package."""
    version_name = f"{name}-{hashlib.sha256(package).hexdigest()[:12]}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_bytes(package)
        pipeline_id = _pipeline(client, access, name)
        if not pipeline_id:
            pipeline_id = client.upload_pipeline(str(path), name, namespace=access.namespace).pipeline_id
        version_id = _version(client, pipeline_id, version_name)
        if not version_id:
            uploaded = client.upload_pipeline_version(str(path), version_name, pipeline_id)
            version_id = uploaded.pipeline_version_id
    return {"pipeline_id": pipeline_id, "version_id": version_id}


def _pipeline(client: Client, access: Access, name: str) -> str:
    # Not get_pipeline_id, which looks only among the pipelines that all namespaces share.
    found = client.list_pipelines(namespace=access.namespace, filter=_called(name)).pipelines
    return found[0].pipeline_id if found else ""


def _version(client: Client, pipeline_id: str, name: str) -> str:
    found = client.list_pipeline_versions(pipeline_id, filter=_called(name)).pipeline_versions
    return found[0].pipeline_version_id if found else ""


def _called(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "name", "stringValue": name}]})


def _experiment(client: Client, access: Access, name: str) -> str:
    return str(client.create_experiment(name, namespace=access.namespace).experiment_id)  # or finds it


def _job_name(recipe: Recipe, pool: str) -> str:
    return f"{recipe.name} {pool} {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _version_of(run: Any) -> dict[str, str]:
    reference = run.pipeline_version_reference
    if reference is None:
        raise InputError(f"{run.run_id}: has no pipeline version to start again; `chatmetrics submit` gives it one")
    return {"pipeline_id": reference.pipeline_id, "version_id": reference.pipeline_version_id}


def _again(client: Client, access: Access, run: Any, parameters: dict[str, Any], name: str, ids: dict[str, str]) -> str:
    with _quietly(access):
        started = client.run_pipeline(
            experiment_id=run.experiment_id,
            job_name=name,
            params=parameters,
            service_account=run.service_account or None,
            **ids,
        )
    _note(run_folder(parameters["run_uri"], started.run_id), _submitted(run) | {"again": run.run_id})
    return str(started.run_id)


@contextmanager
def _quietly(access: Access) -> Iterator[None]:
    """Errors in one line, and nothing of what KFP's client prints at each call."""
    with api_errors(access), redirect_stdout(io.StringIO()):
        yield


def _note(run_uri: str, record: dict[str, Any]) -> None:
    """Keep with the run what it was made of; it runs by now, so that a store which refuses is only said."""
    try:
        data = json.dumps(record, indent=2, ensure_ascii=False).encode()
        open_store(run_uri).put_bytes(data, SUBMITTED, overwrite=True)
    except StorageError as error:
        print(f"warning: the run's folder could not be written from here: {error}", file=sys.stderr, flush=True)
