"""Reports the progress of training: lines on the console, and records in progress.jsonl."""

import json
from pathlib import Path
from time import monotonic
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatmetrics.components.console import Progress
from chatmetrics.components.storage.files import atomic_file, flush_to_disk
from chatmetrics.components.train.watch.throughput import ThroughputMeter

PROGRESS_FILE = "progress.jsonl"
DEV_NAMES = {"eval_loss": "dev_loss", "eval_accuracy": "dev_accuracy"}  # transformers' names and ours
THROUGHPUT_NAMES = ("tokens_per_second", "mfu", "gpu_memory_gib")


class ProgressLog(TrainerCallback):
    """Appends a record to progress.jsonl whenever the trainer logs.

    A record has step, of (the last step), loss, learning_rate, seconds, `tokens` of the examples so far, and
    `computed_tokens`, which the first process computed for them, padding included; the entries of
    `ThroughputMeter.measures`; and, if dev questions were just measured, `dev_loss` or `dev_accuracy`.

    Seconds are counted from the first start of the run. Steps after the checkpoint that a run resumes from are repeated
    and counted once.
    """

    def __init__(self, checkpoints: Path, throughput: ThroughputMeter) -> None:
        self._throughput = throughput
        self.seconds = 0.0
        self.tokens, self.computed_tokens = 0, 0
        self._path = checkpoints / PROGRESS_FILE
        self._earlier_seconds = 0.0
        self._started = monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the records of steps that will be repeated."""
        self._started = monotonic()
        self._progress = Progress("training", state.max_steps, "steps", begun=state.global_step)
        if not state.is_world_process_zero:
            return
        kept = [record for record in self.records() if record["step"] <= state.global_step]
        if kept:
            self.seconds = self._earlier_seconds = kept[-1]["seconds"]
            self.tokens, self.computed_tokens = kept[-1]["tokens"], kept[-1]["computed_tokens"]
        with atomic_file(self._path) as file:
            file.writelines(json.dumps(record).encode() + b"\n" for record in kept)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            last = next((record for record in reversed(state.log_history) if "loss" in record), None)
            loss = f"loss {last['loss']:.4f}, " if last else ""
            self._progress.update(state.global_step, loss + self._throughput.line())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        self.seconds = self._earlier_seconds + monotonic() - self._started
        self.tokens, self.computed_tokens = int(logs["num_tokens"]), int(logs["computed_tokens"])
        record = {
            "step": state.global_step,
            "of": state.max_steps,
            "loss": float(logs["loss"]),
            "learning_rate": float(logs["learning_rate"]),
            "seconds": round(self.seconds, 3),
            "tokens": self.tokens,
            "computed_tokens": self.computed_tokens,
            **{name: float(logs[name]) for name in THROUGHPUT_NAMES if name in logs},
            **{name: float(logs[measured]) for measured, name in DEV_NAMES.items() if measured in logs},
        }
        with self._path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            flush_to_disk(file)  # before the next checkpoint, which continues after this record

    def records(self) -> list[dict[str, Any]]:
        """The records so far; an incomplete last line, left by a kill, is skipped."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
