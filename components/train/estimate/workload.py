"""How much there is to compute in a training run, before anything of it is computed."""

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
    """Of one epoch.

    Attributes:
        examples: trained on.
        tokens: of all examples, each in full.
        computed_tokens: what a device computes for them, after packing or with padding.
        answer_tokens: those that bear loss.
        largest_pack: most tokens that a device takes at once.
    """

    examples: int
    tokens: int
    computed_tokens: int
    answer_tokens: int
    largest_pack: int


def workload(settings: TrainSettings, dataset: Path, base_folder: Path, attention_tokens: float) -> Workload:
    """Pack a dataset's first epoch, and count.

    Args:
        settings: the recipe's `train` section, fitted to its pool.
        dataset: folder with train.jsonl.
        base_folder: with the tokenizer.
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
