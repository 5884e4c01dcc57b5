"""A dataset's tokens on the disk, under a name made of all that they depend on: made once, then mapped into memory."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.storage.folder import atomic_folder
from chatmetrics.components.train.data.tokenization import PROBE, tokenize
from chatmetrics.components.train.data.trees import TokenizedExample

FORM = "1"  # changes with the form of the files, or of what `tokenize` makes


class TokenizedExamples(Sequence[TokenizedExample]):
    """Examples by number, read from the disk as they are asked for.

    Attributes:
        lengths: tokens of each example.
        groups: equal numbers for examples with the same schema in the prompt or, where there is none, of one database.
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
        return TokenizedExample(
            np.asarray(self._ids[start : start + self.lengths[index]]), int(self._prompt_lengths[index])
        )


def tokenized(
    dataset: Path, dataset_sha256: str, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerBase, cutoff_length: int
) -> TokenizedExamples:
    """The tokens of train.jsonl, from the disk where they have been made before.

    Raises:
        InputError: there are no examples, one cannot be trained on or has more tokens than `cutoff_length`.
        StorageError: the cache cannot be written.
    """
    path = dataset / "train.jsonl"
    folder = folder_of(dataset_sha256, tokenizer_folder)
    if not folder.is_dir():
        examples = read_examples(path)
        if not examples:
            raise InputError(f"{path}: holds no examples")
        _write(folder, examples, tokenize(examples, tokenizer))
    tokens = TokenizedExamples(folder)
    if (too_long := np.flatnonzero(tokens.lengths > cutoff_length)).size:
        index = too_long[0]
        raise InputError(
            f"example {read_examples(path)[index].id}: {tokens.lengths[index]} tokens are more than cutoff_length "
            f"{cutoff_length} and would be cut; raise train.cutoff_length, or preprocess with the same cutoff_length "
            "and this tokenizer"
        )
    return tokens


def folder_of(dataset_sha256: str, tokenizer_folder: Path) -> Path:
    """Where the tokens are: ids.npy, and examples.npy with the end, the length of the prompt and the group of each."""
    files = ("tokenizer.json", "tokenizer_config.json")
    parts = [FORM, PROBE, dataset_sha256, *((tokenizer_folder / name).read_text("utf-8") for name in files)]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatmetrics" / "tokens" / name


def _write(folder: Path, examples: Sequence[Example], tokens: Iterator[TokenizedExample]) -> None:
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(example.system or example.db_id, len(numbers)) for example in examples]
    every = list(tokens)
    ends = np.cumsum([len(item.ids) for item in every])
    with atomic_folder(folder) as unfinished:
        np.save(unfinished / "ids.npy", np.concatenate([item.ids for item in every]))
        np.save(unfinished / "examples.npy", np.stack([ends, [item.prompt_length for item in every], groups]))
