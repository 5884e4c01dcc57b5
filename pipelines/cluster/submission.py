"""Submit a recipe to a cluster: upload its inputs to the store and its package to KFP, start a run or a schedule."""

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from kfp import Client

from chatmetrics.components.base_model.references import as_folder, fingerprint
from chatmetrics.components.console import info, warning
from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.image import image
from chatmetrics.components.nl2sql.databases.addresses import is_address
from chatmetrics.components.preprocess.freshness import freshness
from chatmetrics.components.preprocess.hub_source import is_hub
from chatmetrics.components.preprocess.settings import HeldOutSettings, PreprocessSettings, SourceSettings
from chatmetrics.components.preprocess.source_files import held_out_databases, tables_near
from chatmetrics.components.redaction import redacted
from chatmetrics.components.storage.dataset_databases import sqlite_files
from chatmetrics.components.storage.mirror import push_folder
from chatmetrics.components.storage.store import Store, open_store
from chatmetrics.pipelines.cluster.kubeflow import Access, api_errors
from chatmetrics.pipelines.cluster.package import check_built, compile_package, images_of, locations, without_cache
from chatmetrics.pipelines.estimate import check_pool
from chatmetrics.pipelines.pools import DEFAULT, Pool, load_pools, step_pools
from chatmetrics.pipelines.quantization_check import check_quantization
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.resources import billions_of_parameters

ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
SUCCESSES = {"SUCCEEDED", "CACHED", "SKIPPED"}  # KFP's states of a task with results
SUBMITTED = "submitted.json"
ROUND = "round-"  # beginning of the folders of the checkpoints of a distillation round that is not the last
CRON_FIELDS = 5

Questions = TypeVar("Questions", SourceSettings, HeldOutSettings)


@dataclass(frozen=True)
class Submission:
    """A recipe to submit and how to run it.

    Attributes:
        recipe: the recipe, with absolute local paths.
        pool_name: name of the pool train runs on.
        pool: that pool.
        experiment: KFP experiment the run is listed under.
        cache: reuse the results of unchanged steps of earlier runs.
        pools: the known pools, for the steps in the recipe's `cluster.pools`.
    """

    recipe: Recipe
    pool_name: str
    pool: Pool
    experiment: str = "chatmetrics"
    cache: bool = True
    pools: Mapping[str, Pool] = field(default_factory=load_pools)


def submit(client: Client, access: Access, submission: Submission) -> str:
    """Start a run and return its id.

    Local inputs (a folder or GGUF file as base model, questions, databases) are uploaded to the store first, under a
    hash of their content.

    Raises:
        InputError: the recipe does not fit the pool, or an image was not built.
        ServiceError: KFP refused.
        StorageError: the store refused.
    """
    recipe, arguments = _prepare(submission)
    package = _package(recipe, submission)
    with _quietly(access):
        run = client.run_pipeline(
            experiment_id=_experiment_id(client, access, submission.experiment),
            job_name=_job_name(recipe, submission.pool_name),
            params=arguments,
            service_account=recipe.cluster.service_account or None,
            **_uploaded(client, access, recipe.name, package),
        )
    record = {
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        "pool": submission.pool_name,
        "cache": submission.cache,
        "fingerprints": {name: arguments[name] for name in ("base_fingerprint", "data_fingerprint")},
        "images": {step: image(step) for step in images_of(recipe)} | {"train": arguments["train_image"]},
        "chatmetrics": version("chatmetrics"),
    }
    _write_record(run_folder(arguments["run_uri"], run.run_id), record)
    return str(run.run_id)


def schedule(client: Client, access: Access, submission: Submission, cron: str) -> str:
    """Have KFP start runs of a recipe on a schedule, and return the id of the schedule.

    Scheduled runs do not use KFP's cache, which would not notice that their data have changed.

    Args:
        client: KFP's client.
        access: where KFP is, for error messages.
        submission: what is run.
        cron: minute, hour, day of month, month, day of week: `0 3 * * 0` is Sundays at three, in the cluster's time.

    Raises:
        InputError: `cron` does not have five fields; also as `submit`.
    """
    if len(cron.split()) != CRON_FIELDS:
        raise InputError(f"--schedule '{cron}': write minute hour day month weekday, as in '0 3 * * 0'")
    recipe, arguments = _prepare(submission)
    package = _package(recipe, replace(submission, cache=False))
    with _quietly(access):
        recurring = client.create_recurring_run(
            experiment_id=_experiment_id(client, access, submission.experiment),
            job_name=_job_name(recipe, submission.pool_name),
            cron_expression=f"0 {cron}",  # KFP's cron expressions begin with seconds
            no_catchup=True,
            params=arguments,
            service_account=recipe.cluster.service_account or None,
            **_uploaded(client, access, recipe.name, package),
        )
    return str(recurring.recurring_run_id)


def resume(client: Client, access: Access, run: Any) -> str:
    """Start a run that resumes one that failed or was cancelled; return its id.

    Steps that had succeeded are taken from KFP's cache. A train that had not resumes from its last checkpoint. Where to
    resume is part of train's cache key, so it is left as it is for a train that the cache has.

    Raises:
        InputError: the run has not ended, or succeeded.
        ServiceError: KFP refused.
    """
    if run.state not in ENDED:
        raise InputError(f"{run.run_id} is {run.state}: wait for it, or `chatmetrics cancel` it first")
    if run.state == "SUCCEEDED":
        raise InputError(f"{run.run_id} succeeded: there is nothing to resume; `chatmetrics reproduce` runs it again")
    run_store(run)
    parameters = dict(run.runtime_config.parameters)
    own = run_folder(parameters["checkpoints"], run.run_id)
    saved = [key for key in open_store(own).list("") if "checkpoint-" in key]
    cached = _uses_cache(run)
    # Without checkpoints of its own, it may itself have resumed an earlier run: then the parameters stay as they are.
    if any(not key.startswith(ROUND) for key in saved) and not (cached and _succeeded(run, "train")):
        parameters["resume_from"] = own
    rounds = {key.partition("/")[0] for key in saved if key.startswith(ROUND)}
    if not cached or not all(_succeeded(run, f"train-{round}") for round in rounds):
        parameters |= {"resume_rounds_from": own} if rounds else {}
    ids = _version_ids(run)
    return _start_again(client, access, run, parameters, f"{run.display_name} resumed", ids, cached)


def _succeeded(run: Any, step: str) -> bool:
    """Whether a step of a run succeeded or was taken from the cache, by KFP or by the step's own record."""
    names = {step, step.replace("-", " ")}  # KFP's name of a task, and its display name
    details = (run.run_details.task_details if run.run_details else None) or ()
    if any(task.display_name in names and str(task.state) in SUCCESSES for task in details):
        return True
    return bool(_read_record(run, f"steps/{step}.json").get("state") == "succeeded")


def _uses_cache(run: Any) -> bool:
    """Whether a run's package lets KFP reuse results; those of schedules and of `--no-cache` do not."""
    return not getattr(run, "recurring_run_id", None) and bool(_read_record(run, SUBMITTED).get("cache", True))


def reproduce(client: Client, access: Access, run: Any) -> str:
    """Start the same run again without the cache; return its id.

    The package names the images by digest and the parameters contain the recipe. The base model and the data are
    compared with the fingerprints in the parameters.

    Raises:
        InputError: the base model or the data have changed since, or cannot be read from here.
        ServiceError: KFP refused.
    """
    run_store(run)
    ids = _version_ids(run)
    parameters = dict(run.runtime_config.parameters)
    parameters["resume_from"] = ""
    parameters.pop("resume_rounds_from", None)
    for name, value in _fingerprints(parameters).items():
        what = {"base_fingerprint": "base model", "data_fingerprint": "data"}[name]
        if parameters[name] and not value:
            raise InputError(f"{run.run_id}: its {what} cannot be read from here, so changes cannot be ruled out")
        if parameters[name] != value:
            raise InputError(f"{run.run_id}: its {what} changed since, so the run cannot be reproduced")
    with _quietly(access):
        stored = client.get_pipeline_version(ids["pipeline_id"], ids["version_id"]).pipeline_spec
        spec, platforms = stored["pipeline_spec"], stored["platform_spec"]["platforms"]
        package = without_cache([spec, {"platforms": platforms}]).encode()
        ids = _uploaded(client, access, spec["pipelineInfo"]["name"], package)
    return _start_again(client, access, run, parameters, f"{run.display_name} reproduced", ids, cache=False)


def run_folder(uri: str, run_id: str) -> str:
    """Return a URI from the pipeline's parameters with the run's id filled in."""
    return uri.replace("{run}", run_id)


def run_store(run: Any) -> Store:
    """Return the folder of a run in the store.

    Raises:
        InputError: the run was not submitted by ChatMetrics.
    """
    parameters = run.runtime_config.parameters if run.runtime_config else {}
    if "run_uri" not in (parameters or {}):
        raise InputError(f"{run.run_id}: was not submitted by chatmetrics")
    return open_store(run_folder(parameters["run_uri"], run.run_id))


def run_url(access: Access, run_id: str) -> str:
    """Return the URL of a run in KFP's console."""
    return redacted(f"{access.url}/#/runs/details/{run_id}")


def _read_record(run: Any, key: str) -> dict[str, Any]:
    """Return a JSON file of a run's folder; empty if it is not available."""
    store = run_store(run)
    try:
        return dict(json.loads(store.read_bytes(key))) if store.exists(key) else {}
    except (StorageError, ValueError, TypeError) as error:  # not JSON, or no object
        warning(f"{key} of run {run.run_id} is not available: {error}")
        return {}


def _prepare(submission: Submission) -> tuple[Recipe, dict[str, Any]]:
    """Upload the recipe's inputs; return the recipe that refers to them in the store, and the pipeline's arguments."""
    check_built(submission.pool.image, submission.recipe)
    step_pools(submission.recipe, submission.pools)
    check_pool(submission.recipe, submission.pool_name, submission.pool)
    check_quantization(submission.recipe)
    recipe = _with_inputs_in_store(submission.recipe)
    arguments = recipe.arguments() | locations(recipe) | submission.pool.arguments(recipe)
    return recipe, arguments | _fingerprints(arguments)


def _with_inputs_in_store(recipe: Recipe) -> Recipe:
    inputs = f"{recipe.cluster.store.rstrip('/')}/inputs"
    several: list[PreprocessSettings | SourceSettings] = [recipe.preprocess, *recipe.preprocess.sources]
    for each in several:
        source = Path(each.source).expanduser() if each.source else None
        if source and source.is_file() and not (each.databases or recipe.preprocess.databases):
            raise InputError(
                f"{source}: only this file is uploaded, not the databases next to it; set preprocess.databases too"
            )
        if source and source.is_file() and "spider" in each.format and tables_near(source.parent):
            warning(f"{source}: only this file is uploaded, not tables.json next to it; name its folder to use both")

    for name, held_out in recipe.preprocess.held_out.items():
        questions = Path(held_out.source).expanduser()
        own = sqlite_files(held_out_databases(questions, ""))
        if questions.is_file() and not held_out.databases and own:
            raise InputError(
                f"{questions}: only this file is uploaded, not the databases next to it; set "
                f"preprocess.held_out.{name}.databases too"
            )

    def stored(reference: str) -> str:
        reference = as_folder(reference)  # pods reach no package index and cannot read GGUF
        path = Path(reference).expanduser()
        if not reference or "://" in reference or not path.exists():
            return reference  # empty, a URI, a Hub name or a path on a mounted volume
        info(f"submit: {path} is uploaded to {inputs}")
        return push_folder(path, inputs) if path.is_dir() else _push_file(path, inputs)

    def in_store(settings: Questions) -> Questions:
        return settings.model_copy(update={name: stored(getattr(settings, name)) for name in ("source", "databases")})

    # The size of the base model is known from its local files, but not from its name in the store.
    cluster = recipe.cluster.model_copy(update={"base_parameters": billions_of_parameters(recipe)})
    inputs_of_preprocess = ("source", "databases", "knowledge", "tokenizer")
    preprocess = recipe.preprocess.model_copy(
        update={name: stored(getattr(recipe.preprocess, name)) for name in inputs_of_preprocess}
        | {"sources": [in_store(source) for source in recipe.preprocess.sources]}
        | {"held_out": {name: in_store(held_out) for name, held_out in recipe.preprocess.held_out.items()}}
    )
    distill = recipe.distill.model_copy(update={"unlabeled_questions": stored(recipe.distill.unlabeled_questions)})
    parts = {"preprocess": preprocess, "distill": distill, "cluster": cluster}
    return recipe.model_copy(update={"base_model": stored(recipe.base_model), **parts})


def _push_file(path: Path, uri: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.absolute())
        return f"{push_folder(Path(folder), uri)}/{path.name}"


def _fingerprints(arguments: dict[str, Any]) -> dict[str, str]:
    """Return fingerprints of base model and data, which let KFP's cache notice changes; "" for what cannot be read."""
    preprocess, distill = arguments["preprocess_settings"], arguments.get("distill_settings") or {}

    def fingerprints(*references: tuple[str, str]) -> str:
        try:
            return "+".join(fingerprint(*reference) for reference in references if reference[0])
        except (InputError, StorageError) as error:
            warning(f"KFP's cache will not notice when an input changes: {error}")
            return ""

    databases = preprocess.get("databases") or ""
    tokenizer = (preprocess.get("tokenizer", ""), preprocess.get("tokenizer_revision", ""))
    several = (*(preprocess.get("held_out") or {}).values(), *(preprocess.get("sources") or []))
    sources = (
        preprocess.get("source"),
        "" if is_address(databases) else databases,
        preprocess.get("knowledge"),
        distill.get("unlabeled_questions"),
        *(each.get(name) for each in several for name in ("source", "databases")),
    )
    # A dataset on the Hub is not looked up, as a model is not: its name and revision are in the settings.
    data = [(source, "") for source in sources if source and not is_hub(source)]
    base = (arguments["base_model"], arguments["revision"])
    read = "+".join([fingerprints(*data, tokenizer), *freshness(PreprocessSettings.model_validate(preprocess))])
    return {"base_fingerprint": fingerprints(base), "data_fingerprint": read}


def _package(recipe: Recipe, submission: Submission) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        # Always with the default pool: the run's pool is in its parameters, so that one package serves all pools.
        compile_package(recipe, path, load_pools()[DEFAULT], submission.cache, submission.pools)
        return path.read_bytes()


def _uploaded(client: Client, access: Access, name: str, package: bytes) -> dict[str, str]:
    """Upload a package as a version of the pipeline `name`, unless KFP has it already; return the two ids."""
    version_name = f"{name}-{hashlib.sha256(package).hexdigest()[:12]}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_bytes(package)
        pipeline_id = _pipeline_id(client, access, name)
        if not pipeline_id:
            pipeline_id = client.upload_pipeline(str(path), name, namespace=access.namespace).pipeline_id
        version_id = _version_id(client, pipeline_id, version_name)
        if not version_id:
            uploaded = client.upload_pipeline_version(str(path), version_name, pipeline_id)
            version_id = uploaded.pipeline_version_id
    return {"pipeline_id": pipeline_id, "version_id": version_id}


def _pipeline_id(client: Client, access: Access, name: str) -> str:
    # Not get_pipeline_id, which searches only the pipelines shared by all namespaces.
    found = client.list_pipelines(namespace=access.namespace, filter=_name_filter(name)).pipelines
    return found[0].pipeline_id if found else ""


def _version_id(client: Client, pipeline_id: str, name: str) -> str:
    found = client.list_pipeline_versions(pipeline_id, filter=_name_filter(name)).pipeline_versions
    return found[0].pipeline_version_id if found else ""


def _name_filter(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "name", "stringValue": name}]})


def _experiment_id(client: Client, access: Access, name: str) -> str:
    return str(client.create_experiment(name, namespace=access.namespace).experiment_id)  # finds it if it exists


def _job_name(recipe: Recipe, pool: str) -> str:
    return f"{recipe.name} {pool} {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _version_ids(run: Any) -> dict[str, str]:
    reference = run.pipeline_version_reference
    if reference is None:
        raise InputError(f"{run.run_id}: it has no pipeline version to start again; use `chatmetrics submit`")
    return {"pipeline_id": reference.pipeline_id, "version_id": reference.pipeline_version_id}


def _start_again(
    client: Client,
    access: Access,
    run: Any,
    parameters: dict[str, Any],
    name: str,
    ids: dict[str, str],
    cache: bool,
) -> str:
    with _quietly(access):
        started = client.run_pipeline(
            experiment_id=run.experiment_id,
            job_name=name,
            params=parameters,
            service_account=run.service_account or None,
            **ids,
        )
    record = _read_record(run, SUBMITTED) | {"again": run.run_id, "cache": cache}
    _write_record(run_folder(parameters["run_uri"], started.run_id), record)
    return str(started.run_id)


@contextmanager
def _quietly(access: Access) -> Iterator[None]:
    """Turn errors of the API into errors of one line, and suppress what KFP's client prints at each call."""
    with api_errors(access), redirect_stdout(io.StringIO()):
        yield


def _write_record(run_uri: str, record: dict[str, Any]) -> None:
    """Write a record of the submission to the run's folder; failing is only a warning, because the run has started."""
    try:
        data = json.dumps(record, indent=2, ensure_ascii=False).encode()
        open_store(run_uri).put_bytes(data, SUBMITTED, overwrite=True)
    except StorageError as error:
        warning(f"the run's folder cannot be written from here: {error}")
