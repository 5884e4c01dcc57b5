"""Run `chatmetrics run` in a process of its own, and what a local run's data are known by."""

from dataclasses import dataclass
from pathlib import Path

from chatmetrics.pipelines.local.run import run_arguments
from chatmetrics.pipelines.recipe import load_recipe
from tests.base_model.gguf_bases import write_gguf
from tests.command import command_line, finished_process


@dataclass(frozen=True)
class FinishedRun:
    """Exit status, lines of standard output and text of standard error of a run."""

    status: int
    lines: list[str]
    error: str

    def state_of(self, step: str) -> str:
        """The last state shown for a step."""
        shown = [line.partition("|")[2].strip() for line in self.lines if line.split("|")[0].strip() == step]
        return shown[-1].split(" (")[0]


def data_fingerprint(recipe: Path, folder: Path) -> str:
    """That of a local run in `folder`, which repeats its steps when it changes."""
    base = folder / "base.gguf"
    if not base.exists():
        write_gguf(base)
    loaded = load_recipe(str(recipe), [f"base_model={base}", "cluster.base_parameters=0"])
    return str(run_arguments(loaded, folder / "work", "file:///models", folder / "run")["data_fingerprint"])


def run_command(recipe: Path, work: Path, *overrides: str) -> list[str]:
    return command_line(*_arguments(recipe, work, overrides))


def run_recipe(recipe: Path, work: Path, *overrides: str) -> FinishedRun:
    done = finished_process(*_arguments(recipe, work, overrides), timeout=900)
    return FinishedRun(done.returncode, done.stdout.splitlines(), done.stderr)


def _arguments(recipe: Path, work: Path, overrides: tuple[str, ...]) -> list[str | Path]:
    settings = [part for override in overrides for part in ("--set", override)]
    return ["run", recipe, "--work-dir", work, "--no-ask", *settings]
