"""Run the DAG on this machine with KFP's local runner and a file store, and show a table of its steps."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import local
from rich.console import Console

from chatmetrics.components.base_model.references import fingerprint
from chatmetrics.components.errors import InputError, UserError
from chatmetrics.components.image import source_hash
from chatmetrics.components.nl2sql.databases.addresses import is_address
from chatmetrics.components.preprocess.freshness import freshness
from chatmetrics.components.preprocess.settings import HeldOutSettings, PreprocessSettings, SourceSettings
from chatmetrics.components.preprocess.source_files import (
    DESCRIPTIONS,
    folder_of_databases,
    held_out_databases,
    held_out_questions,
    held_out_tables,
    tables_near,
)
from chatmetrics.components.storage.dataset_databases import sqlite_files
from chatmetrics.components.storage.store import open_store
from chatmetrics.pipelines.distillation import distillation_pipeline
from chatmetrics.pipelines.local.display import Display
from chatmetrics.pipelines.local.kfp_hooks import KfpHooks
from chatmetrics.pipelines.quantization_check import check_quantization
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.steps_view import task_labels

EXIT_TASK = "outcome"
CACHE = ".kfp_cache"  # KFP's cache, a folder inside its pipeline_root


@dataclass(frozen=True)
class LocalRun:
    """The result of a run on this machine; of a failed run, the results of the steps that succeeded.

    Attributes:
        error: why it failed: the failed step's own message, as the class that has its exit status.
        dataset: folder written by preprocess, or by distill in its last round.
        manifest_uri: manifest of the published student; empty if none was published.
        report: folder written by evaluate.
    """

    error: UserError | None
    dataset: Path | None
    manifest_uri: str
    report: Path | None


def run(recipe: Recipe, work: Path, models_uri: str, console: Console, cache: bool = True) -> LocalRun:
    """Run a recipe on this machine; steps that have not changed since an earlier run in the work folder are cached.

    Args:
        recipe: what to run.
        work: folder for everything that is written: models/, checkpoints/, merged/, artifacts/, teacher/, answers/,
            logs/.
        models_uri: store to publish the model in; empty is work/models.
        console: where progress is shown.
        cache: reuse the results of unchanged steps; if False all steps run again, and training resumes from its
            checkpoints.

    Raises:
        InputError: another run uses the work folder, or the recipe names files that do not exist.
    """
    work = work.resolve()
    models_uri = models_uri or (work / "models").as_uri()
    with _locked(work):
        run_folder = _new_folder(work / "logs")
        arguments = run_arguments(recipe, work, models_uri, run_folder)
        _forget_deleted(work / "artifacts" / CACHE)
        distillation = distillation_pipeline(students=recipe.distill.students, is_self=recipe.distill.is_self)
        labels = task_labels(distillation)
        with Display(console, labels) as display:
            hooks = KfpHooks(display, run_folder, always=[EXIT_TASK])
            with hooks.installed(run_folder / "kfp.log"):
                local.init(
                    local.SubprocessRunner(use_venv=False),
                    pipeline_root=str(work / "artifacts"),
                    raise_on_error=False,
                    enable_caching=cache,
                )
                distillation(**arguments)
    # With several rounds, only the tasks of the last round have labels without a round number.
    tasks = {label: task for task, label in labels.items()}
    if recipe.distill.enabled:
        dataset = hooks.folder(tasks["distill"], "distilled")
    else:
        dataset = hooks.folder(tasks["preprocess"], "dataset")
    return LocalRun(
        error=hooks.error,
        dataset=dataset,
        manifest_uri=hooks.outputs.get("gate", {}).get("manifest_uri", ""),
        report=hooks.folder(tasks["evaluate"], "report"),
    )


def _new_folder(parent: Path) -> Path:
    """Return the path of a new folder, named after the current time."""
    name = time.strftime("%Y%m%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(parent / name for name in names if not (parent / name).exists())


def _forget_deleted(cache: Path) -> None:
    """Remove cache entries of steps whose model was deleted.

    KFP checks that cached artifacts still exist, but not the models whose URIs those steps returned.
    """
    for entry in cache.glob("*.json"):
        outputs = json.loads(entry.read_bytes())
        merged, candidate = outputs.get("model_uri"), outputs.get("Output")
        folder, _, name = str(candidate or "").rpartition("/")
        if (merged and not Path(merged).exists()) or (candidate and not open_store(folder).exists(name)):
            entry.unlink()


def run_arguments(recipe: Recipe, work: Path, models_uri: str, run_folder: Path) -> dict[str, Any]:
    """Return the DAG's arguments for a run on this machine.

    KFP's cache keys contain parameters only. So the files that steps read are represented by fingerprints, and the
    folders for checkpoints and the merged model are named after a hash of everything that determines their content.
    """
    check_quantization(recipe)
    arguments = recipe.arguments()
    tokenizer = fingerprint(
        arguments["preprocess_settings"]["tokenizer"], arguments["preprocess_settings"]["tokenizer_revision"]
    )
    base = fingerprint(recipe.base_model, recipe.revision)
    files = data_files(recipe.preprocess)
    unlabeled = Path(recipe.distill.unlabeled_questions).expanduser()
    if recipe.distill.unlabeled_questions and unlabeled.exists():
        files.append(unlabeled)
    data_key = _key([*(fingerprint(str(path)) for path in files), tokenizer, *freshness(recipe.preprocess)])
    distilled = [arguments["distill_settings"], source_hash("distill")] if recipe.distill.enabled else []
    training = [arguments["preprocess_settings"], *distilled, arguments["train_settings"], data_key, base]
    adapter_key = _key([*training, source_hash("preprocess"), source_hash("train")])
    merged_key = _key([adapter_key, arguments["merge_settings"], source_hash("merge")])
    return {
        **arguments,
        "models_uri": models_uri,
        "checkpoints": str(work / "checkpoints" / adapter_key),
        "merged_uri": str(work / "merged" / f"{recipe.name}-{merged_key}"),
        "run_uri": run_folder.as_uri(),
        "answers_uri": str(work / "answers"),  # of all runs: an answer's key has the hashes of model and prompt
        **({"ledger_uri": str(work / "teacher" / recipe.name)} if recipe.distill.enabled else {}),
        "data_fingerprint": data_key,
        "base_fingerprint": base,
    }


def data_files(settings: PreprocessSettings) -> list[Path]:
    """Return the existing files and folders that preprocess reads, and no others from the same folder."""
    held_out = [path for each in settings.held_out.values() for path in _held_out_files(each)]
    knowledge = Path(settings.knowledge).expanduser()
    known = [knowledge] if settings.knowledge and knowledge.exists() else []
    several: list[PreprocessSettings | SourceSettings] = [settings, *settings.sources]
    sources = [path for each in several for path in _source_files(each, settings.databases)]
    return list(dict.fromkeys([*sources, *held_out, *known]))


def _source_files(settings: PreprocessSettings | SourceSettings, databases: str) -> list[Path]:
    if not settings.source:
        return []
    source = Path(settings.source).expanduser()
    folder = source if source.is_dir() else source.parent
    questions = sorted(path for path in folder.glob("*") if path.is_file()) if source.is_dir() else [source]
    databases = settings.databases or databases
    root = Path(databases).expanduser() if databases and not is_address(databases) else folder
    tables = tables_near(folder, root)
    found = (*questions, *([tables] if tables else []), *_files_of(folder_of_databases([root]), root))
    return [path for path in found if path.exists()]


def _held_out_files(settings: HeldOutSettings) -> list[Path]:
    try:
        questions = held_out_questions(Path(settings.source).expanduser())
    except InputError:
        return []  # a URI, or what preprocess refuses
    databases = held_out_databases(questions[0], settings.databases)
    root = Path(settings.databases).expanduser() if settings.databases else questions[0].parent
    return [*questions, *held_out_tables(questions[0], databases), *_files_of(databases, root)]


def _files_of(databases: Path, root: Path) -> list[Path]:
    """A folder that is there for databases; of `root` itself, which may contain anything, only what is about them."""
    if databases != root.absolute():
        return [databases]
    return [*sorted(sqlite_files(root).values()), *sorted(root.glob(f"*/{DESCRIPTIONS}"))]


def _key(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Lock the work folder during the block; the lock file holds our process id.

    Raises:
        InputError: another run has locked it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            process_id = lock.read().strip()
            holder = f"process {process_id}" if process_id else "another process"
            raise InputError(f"{work}: in use by {holder}; wait for it, or give --work-dir another folder") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
