"""Counts how much there is to compute in a training run, before any of it is computed."""

from dataclasses import dataclass
from pathlib import Path

from chatmetrics.components.console import track
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.train.data.steps import optimizer_steps
from chatmetrics.components.train.data.token_cache import tokenized
from chatmetrics.components.train.data.tokenization import load_tokenizer
from chatmetrics.components.train.settings import TrainSettings


@dataclass(frozen=True)
class Workload:
    """Counts of one epoch.

    Attributes:
        examples: number of training examples.
        tokens: tokens of all examples, each counted in full.
        computed_tokens: tokens that a device computes for them, after packing or with padding.
        answer_tokens: tokens that the loss is computed on.
        largest_pack: maximum number of tokens that a device computes at once.
    """

    examples: int
    tokens: int
    computed_tokens: int
    answer_tokens: int
    largest_pack: int


def workload(settings: TrainSettings, dataset: Path, base_folder: Path, attention_tokens: float) -> Workload:
    """Pack a dataset's first epoch and count its tokens.

    Args:
        settings: the recipe's `train` section, fitted to its pool.
        dataset: folder with train.jsonl.
        base_folder: folder with the tokenizer.
        attention_tokens: see `packing`.

    Raises:
        InputError: the examples cannot be trained on.
    """
    sha256 = sha256_of(dataset / "train.jsonl")
    examples = tokenized(dataset, sha256, base_folder, load_tokenizer(base_folder), settings.cutoff_length)
    steps = optimizer_steps(settings, examples, attention_tokens, processes=1)
    tokens = computed = answers = largest = 0
    for step in track((steps[item] for item in range(len(steps))), "packing an epoch", len(steps), "steps"):
        sizes = [pack["input_ids"].numel() for pack in step["packs"]]
        tokens += step["tokens"]
        answers += step["answer_tokens"]
        computed += sum(sizes)
        largest = max(largest, *sizes)
    return Workload(len(examples), tokens, computed, answers, largest)
