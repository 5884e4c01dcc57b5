"""Counts how much there is to compute in a training run, before any of it is computed."""

from pathlib import Path

from chatmetrics.components.console import track
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.train.data.steps import optimizer_steps
from chatmetrics.components.train.data.token_cache import tokenized
from chatmetrics.components.train.data.tokenization import load_tokenizer
from chatmetrics.components.train.estimate.workload import Workload
from chatmetrics.components.train.settings import TrainSettings


def count_workload(settings: TrainSettings, dataset: Path, base_folder: Path, attention_tokens: float) -> Workload:
    """Pack a dataset's first epoch for all processes and count its tokens.

    With several processes, a schema whose questions are shared out is computed by each of them.

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
    processes = settings.processes
    shares = optimizer_steps(settings, examples, attention_tokens, processes)
    tokens = computed = slowest = answers = packs = largest = 0
    for step in track(range(len(shares) // processes), "packing an epoch", len(shares) // processes, "steps"):
        sizes = []
        for item in range(step * processes, (step + 1) * processes):
            share = shares[item]
            sizes.append([pack["input_ids"].numel() for pack in share["packs"]])
        tokens += share["tokens"]
        answers += share["answer_tokens"]
        computed += sum(map(sum, sizes))
        most = max(sizes, key=sum)
        slowest += sum(most)
        packs += len(most)
        largest = max(largest, *map(max, sizes))
    return Workload(len(examples), tokens, computed, slowest, answers, packs, largest)
