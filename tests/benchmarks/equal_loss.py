"""How long this project, TRL and LLaMA-Factory train SmolLM2-135M on Spider until dev questions have the same loss.

All have the base model, data, examples per step, learning rate and LoRA of the recipe spider-laptop, in bf16. This
project trains for CHATMETRICS_BENCH_STEPS steps (40); its last loss is what the others have to reach, within twice as
many steps. The loss is measured every 5 steps in the same way, outside of the measured time.

    CHATMETRICS_SPIDER_DIR=SPIDER python -m tests.benchmarks.equal_loss

takes an hour or two on two cores, which should have nothing else to do.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from chatmetrics.components.base_model.references import local_model
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.nl2sql.prompts.template import dataset_template
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.train.data.token_cache import tokenized
from chatmetrics.components.train.data.tokenization import load_tokenizer, tokenize
from chatmetrics.pipelines.recipe import load_recipe
from tests.benchmarks.bench_train import SPIDER, Run, llama_factory_template, measure, runs, spider

STEPS = int(os.environ.get("CHATMETRICS_BENCH_STEPS", "40"))
DEV_EXAMPLES, DEV_STEPS = 64, 5
# The fastest run of each tool in bench_train.py, and this project's without packing.
COMPARED = ("this project, packed, 8 per schema", "this project, not packed", "TRL, BFD packing", "LLaMA-Factory")


def write_dev_tokens(path: Path, dataset: Path, base: Path) -> None:
    """Write the tokens of some dev questions: an array NUMBER-PROMPT for each, with the length of its prompt."""
    questions = read_examples(dataset / "dev.jsonl")
    some = questions[:: len(questions) // DEV_EXAMPLES][:DEV_EXAMPLES]
    examples = tokenize(some, load_tokenizer(base), dataset_template(dataset))
    arrays = {f"{number}-{example.prompt_length}": np.array(example.ids) for number, example in enumerate(examples)}
    np.savez(path, allow_pickle=False, **arrays)


def row(run: Run, measured: dict[str, Any], target: float) -> None:
    """Print what it took to reach the target, or the lowest loss if it was not reached."""
    reached = next((point for point in measured["curve"] if point["dev_loss"] <= target), None)
    point = reached or measured["curve"][-1]
    cost = f"{point['seconds']:8.0f} {point['cpu_seconds']:8.0f} {point['step']:6} {point['dev_loss']:9.3f}"
    print(f"{run.name:36} {cost} {'' if reached else ' not reached'}", flush=True)


def main() -> None:
    """Train with each tool in a folder of its own, and print the table."""
    if not SPIDER:
        sys.exit("set CHATMETRICS_SPIDER_DIR to Spider's folder")
    with tempfile.TemporaryDirectory(prefix="equal-loss-") as folder:
        compare(Path(folder))


def compare(folder: Path) -> None:
    """Train with this project, and with the others until they reach its loss."""
    recipe = load_recipe("spider-laptop")
    base = local_model(recipe.base_model)
    dataset = spider(base)
    digest = sha256_of(dataset / "train.jsonl")
    examples = tokenized(dataset, digest, base, load_tokenizer(base), 2048)
    write_dev_tokens(folder / "dev.npz", dataset, base)
    job = {
        "dev": str(folder / "dev.npz"),
        "dev_steps": DEV_STEPS,
        "precision": "bf16",
        "learning_rate": recipe.train.learning_rate,
        "lora_rank": recipe.train.lora_rank,
        "scheduler": "constant_with_warmup",
        "warmup_steps": recipe.train.warmup_steps,
        "template": llama_factory_template(dataset),
    }
    print(f"\n{'':36}  seconds    cpu s  steps  dev loss")
    first, *others = [run for run in runs(examples) if run.name in COMPARED]
    done = measure(first, base, dataset, examples.file, folder / "0", {**job, "steps": STEPS})
    target = done["curve"][-1]["dev_loss"]
    row(first, done, target)
    for number, run in enumerate(others, 1):
        changes = {**job, "steps": 2 * STEPS, "target": target}
        row(run, measure(run, base, dataset, examples.file, folder / str(number), changes), target)


if __name__ == "__main__":
    main()
