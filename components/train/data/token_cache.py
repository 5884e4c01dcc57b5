"""Caches a dataset's token ids on disk, under a hash of everything they depend on, and maps them into memory."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate, dataset_template
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.storage.folder import atomic_folder
from chatmetrics.components.train.data.tokenization import PROBE, tokenize
from chatmetrics.components.train.data.trees import TokenizedExample

FORMAT_VERSION = "1"  # increase it when the format of the files or the result of `tokenize` changes


class TokenizedExamples(Sequence[TokenizedExample]):
    """A dataset's tokenized examples by index, read from the memory-mapped cache on access.

    Attributes:
        lengths: number of tokens of each example.
        groups: a number per example, equal for examples with the same schema in the prompt or, without schemas, with
            the same database.
    """

    def __init__(self, folder: Path) -> None:
        with disk_errors(folder):
            self._ids = np.load(folder / "ids.npy", mmap_mode="r")
            ends, self._prompt_lengths, self.groups = np.load(folder / "examples.npy")
        self._starts = np.concatenate([[0], ends[:-1]])
        self.lengths: npt.NDArray[np.int64] = ends - self._starts

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenizedExample:  # type: ignore[override]
        start = self._starts[index]
        ids = np.asarray(self._ids[start : start + self.lengths[index]])
        return TokenizedExample(ids, int(self._prompt_lengths[index]))


def tokenized(
    dataset: Path, dataset_sha256: str, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerBase, cutoff_length: int
) -> TokenizedExamples:
    """Return the tokenized examples of train.jsonl, from the cache if they are in it.

    Raises:
        InputError: there are no examples, or one cannot be trained on or has more tokens than `cutoff_length`.
        StorageError: the cache cannot be written.
    """
    path = dataset / "train.jsonl"
    template = dataset_template(dataset)
    folder = cache_folder(dataset_sha256, tokenizer_folder, template)
    if not folder.is_dir():
        examples = read_examples(path)
        if not examples:
            raise InputError(f"{path}: contains no examples; give the folder that preprocess wrote")
        _write(folder, examples, tokenize(examples, tokenizer, template))
    cached = TokenizedExamples(folder)
    too_long = np.flatnonzero(cached.lengths > cutoff_length)
    if too_long.size:
        index = too_long[0]
        raise InputError(
            f"example {read_examples(path)[index].id}: {cached.lengths[index]} tokens are more than cutoff_length "
            f"{cutoff_length} and would be cut; raise train.cutoff_length, or preprocess with the same cutoff_length "
            "and this tokenizer"
        )
    return cached


def cache_folder(dataset_sha256: str, tokenizer_folder: Path, template: PromptTemplate) -> Path:
    """The cache folder of a dataset, a tokenizer and a prompt template.

    It contains ids.npy, the ids of all examples in a row, and examples.npy, shape (3, examples): where each example
    ends in ids.npy, the length of its prompt, and its group.
    """
    files = ("tokenizer.json", "tokenizer_config.json")
    tokenizer = [(tokenizer_folder / name).read_text("utf-8") for name in files]
    key = hashlib.sha256(
        "\0".join([FORMAT_VERSION, PROBE, template.text, dataset_sha256, *tokenizer]).encode()
    ).hexdigest()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatmetrics" / "tokens" / key


def _write(folder: Path, examples: Sequence[Example], tokens: Iterator[TokenizedExample]) -> None:
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(example.system or example.db_id, len(numbers)) for example in examples]
    items = list(tokens)
    ends = np.cumsum([len(item.ids) for item in items])
    with atomic_folder(folder) as unfinished:
        np.save(unfinished / "ids.npy", np.concatenate([item.ids for item in items]))
        np.save(unfinished / "examples.npy", np.stack([ends, [item.prompt_length for item in items], groups]))
