"""Run the DAG on this machine: kfp's local runner, a file store, and a table of the steps to look at."""

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

from chatmetrics.components.errors import InputError, UserError
from chatmetrics.components.image import source_hash
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.storage.models import fingerprint
from chatmetrics.components.storage.store import open_store
from chatmetrics.pipelines.distillation import distillation_pipeline
from chatmetrics.pipelines.local.display import Display
from chatmetrics.pipelines.local.kfp_hooks import Watch, labels_of, watching
from chatmetrics.pipelines.recipe import Recipe

EXIT_TASK = "outcome"
CACHE = ".kfp_cache"  # kfp's own, inside its pipeline_root


@dataclass(frozen=True)
class Finished:
    """What a run left behind; of a failed one, what it had made by then.

    Attributes:
        error: why it failed, in the failed step's own words and with its exit status.
        dataset: folder that preprocess wrote, or distill in its last round.
        manifest_uri: the published student; empty when none was.
        report: folder that evaluate wrote.
    """

    error: UserError | None
    dataset: Path | None
    manifest_uri: str
    report: Path | None


def run(recipe: Recipe, work: Path, models_uri: str, console: Console, cache: bool = True) -> Finished:
    """Run a recipe on this machine, using what earlier runs in the same work folder have already done.

    Args:
        recipe: What to run.
        work: Folder for everything that is written: models/, checkpoints/, artifacts/, teacher/, logs/.
        models_uri: Store to publish the model in; empty is work/models.
        console: Where progress is shown.
        cache: Take over the results of unchanged steps; without, each runs anew, training from its checkpoints.

    Raises:
        InputError: another run has the work folder, or the recipe names files that do not exist.
    """
    work = work.resolve()
    models_uri = models_uri or (work / "models").as_uri()
    with _alone_in(work):
        run_folder = _new_folder(work / "logs")
        arguments = run_arguments(recipe, work, models_uri, run_folder)
        _forget_deleted(work / "artifacts" / CACHE)
        distillation = distillation_pipeline(rounds=recipe.rounds)
        labels = labels_of(distillation)
        with Display(console, labels) as display:
            watch = Watch(display, run_folder, always=[EXIT_TASK])
            with watching(watch, run_folder / "kfp.log"):
                local.init(
                    local.SubprocessRunner(use_venv=False),
                    pipeline_root=str(work / "artifacts"),
                    raise_on_error=False,
                    enable_caching=cache,
                )
                distillation(**arguments)
    # With several rounds only the last one's tasks have the plain labels.
    names = {label: name for name, label in labels.items()}
    distilled = watch.folder(names["distill"], "distilled") if recipe.rounds else watch.folder("preprocess", "dataset")
    return Finished(
        error=watch.error,
        dataset=distilled,
        manifest_uri=watch.outputs.get("gate", {}).get("Output", ""),
        report=watch.folder(names["evaluate"], "report"),
    )


def _new_folder(parent: Path) -> Path:
    """A folder named for the time, for this run alone."""
    name = time.strftime("%Y%m%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(parent / name for name in names if not (parent / name).exists())


def _forget_deleted(cache: Path) -> None:
    """Let steps run again whose model was deleted since: kfp looks for their artifacts only, not for what they name."""
    for entry in cache.glob("*.json"):
        outputs = json.loads(entry.read_bytes())
        merged, candidate = outputs.get("model_uri"), outputs.get("Output")
        folder, _, name = str(candidate or "").rpartition("/")
        if (merged and not Path(merged).exists()) or (candidate and not open_store(folder).exists(name)):
            entry.unlink()


def run_arguments(recipe: Recipe, work: Path, models_uri: str, run_folder: Path) -> dict[str, Any]:
    """Return the arguments of the DAG for a run on this machine.

    Files that a step reads from outside are represented by their fingerprints, so that kfp's cache, whose keys hold
    parameters only, sees when they change.
    """
    arguments = recipe.arguments()
    tokenizer = fingerprint(
        arguments["preprocess_settings"]["tokenizer"], arguments["preprocess_settings"]["tokenizer_revision"]
    )
    base = fingerprint(recipe.base_model, recipe.revision)
    own = [Path(recipe.distill.unlabeled_questions).expanduser()] if recipe.distill.unlabeled_questions else []
    data = [fingerprint(str(path)) for path in (*data_files(recipe.preprocess), *filter(Path.exists, own))]
    read = _key([*data, tokenizer])
    taught = [arguments["distill_settings"], source_hash("distill")] if recipe.rounds else []
    training = [arguments["preprocess_settings"], *taught, arguments["train_settings"], read, base]
    trained = _key([*training, source_hash("preprocess"), source_hash("train")])
    merged = _key([trained, arguments["merge_settings"], source_hash("merge")])
    return {
        **arguments,
        "models_uri": models_uri,
        "checkpoints": str(work / "checkpoints" / trained),
        "merged_uri": str(work / "merged" / f"{recipe.name}-{merged}"),
        "run_uri": run_folder.as_uri(),
        **({"ledger_uri": str(work / "teacher" / recipe.name)} if recipe.rounds else {}),
        "data_fingerprint": read,
        "base_fingerprint": base,
    }


def data_files(settings: PreprocessSettings) -> list[Path]:
    """Return the files and folders that preprocess reads, of those that exist; nothing else that lies beside them."""
    if not settings.source:
        return []
    source = Path(settings.source).expanduser()
    folder = source if source.is_dir() else source.parent
    questions = sorted(path for path in folder.glob("*") if path.is_file()) if source.is_dir() else [source]
    root = Path(settings.databases).expanduser() if settings.databases else folder
    inside = next((path for name in ("database", "databases") if (path := root / name).is_dir()), None)
    databases = [inside] if inside else sorted({*root.glob("*.sqlite"), *root.glob("*/*.sqlite")})
    return [path for path in (*questions, *databases) if path.exists()]


def _key(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _alone_in(work: Path) -> Iterator[None]:
    """Hold the work folder for this run.

    Raises:
        InputError: another run holds it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise InputError(
                f"{work}: process {holder} runs here; wait for it, or give --work-dir another folder"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
