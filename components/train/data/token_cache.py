"""A dataset's token ids: computed once with `datasets`, and read from its Arrow file afterwards."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, Features, List, Value, disable_progress_bars
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerBase

from chatmetrics.components.console import Progress, warning
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate, dataset_template
from chatmetrics.components.storage.cache import cache_folder
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.train.data.tokenization import PROBE, tokenize
from chatmetrics.components.train.data.trees import TokenizedExample

FORMAT_VERSION = "2"  # increase it when the columns or the result of `tokenize` change
COLUMNS = Features({"ids": List(Value("int32")), "prompt_length": Value("int64"), "group": Value("int64")})


class TokenizedExamples(Sequence[TokenizedExample]):
    """A dataset's tokenized examples by index, read from the memory-mapped Arrow file on access.

    An example with a weight of n is there n times.

    Attributes:
        file: the Arrow file.
        rows: the row of each example in it.
        lengths: number of tokens of each example.
        groups: a number per example, equal for examples with the same schema in the prompt or, without schemas, with
            the same database.
    """

    def __init__(self, tokens: Dataset, weights: Sequence[int]) -> None:
        self.file = Path(tokens.cache_files[0]["filename"])
        self._ids = tokens.data.column("ids")
        self._prompt_lengths: npt.NDArray[np.int64] = tokens.data.column("prompt_length").to_numpy()
        self.rows = np.repeat(np.arange(len(tokens)), weights)
        self.groups: npt.NDArray[np.int64] = tokens.data.column("group").to_numpy()[self.rows]
        self.lengths: npt.NDArray[np.int64] = np.array([len(ids) for ids in self._ids])[self.rows]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenizedExample:  # type: ignore[override]
        # Not through the formats of `datasets`, which take sixty times as long and return int64.
        row = int(self.rows[index])
        return TokenizedExample(self._ids[row].values.to_numpy(), int(self._prompt_lengths[row]))


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
    examples = read_examples(path)
    if not examples:
        raise InputError(f"{path}: contains no examples; give the folder that preprocess wrote")
    fingerprint = _fingerprint(dataset_sha256, tokenizer_folder, template)
    weights = [example.weight for example in examples]
    tokens = TokenizedExamples(_tokens(examples, tokenizer, template, fingerprint), weights)
    too_long = np.flatnonzero(tokens.lengths > cutoff_length)
    if too_long.size:
        index = too_long[0]
        raise InputError(
            f"example {examples[tokens.rows[index]].id}: {tokens.lengths[index]} tokens are more than cutoff_length "
            f"{cutoff_length} and would be cut; raise train.cutoff_length, or preprocess with the same cutoff_length "
            "and this tokenizer"
        )
    return tokens


def _fingerprint(dataset_sha256: str, tokenizer_folder: Path, template: PromptTemplate) -> str:
    """Of all that the tokens depend on.

    `datasets` would compute one itself, but it hashes a function of a module by its name, so that tokens of older code
    would be used, and a tokenizer with its state, which differs after truncation.
    """
    files = ("tokenizer.json", "tokenizer_config.json")
    tokenizer = [(tokenizer_folder / name).read_text("utf-8") for name in files]
    parts = [FORMAT_VERSION, PROBE, template.text, dataset_sha256, *tokenizer]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _tokens(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, fingerprint: str
) -> Dataset:
    """The examples mapped to `COLUMNS`, in the file of this fingerprint."""
    groups: dict[str, int] = {}
    progress, done = Progress("tokenization", len(examples), "examples"), 0

    def columns(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        nonlocal done
        part = [examples[index] for index in batch["index"]]
        tokens = list(tokenize(part, tokenizer, template))
        done += len(part)
        progress.update(done)
        return {
            "ids": [item.ids for item in tokens],
            "prompt_length": [item.prompt_length for item in tokens],
            "group": [groups.setdefault(example.system or example.db_id, len(groups)) for example in part],
        }

    disable_progress_bars()  # they are lines without end in a pod's log
    # With a fingerprint, because `Dataset.from_dict` computes one by pickling, which fails where packages are in a
    # folder that is not called site-packages.
    rows = Dataset(InMemoryTable.from_pydict({"index": list(range(len(examples)))}), fingerprint="rows")
    file = cache_folder("tokens") / f"{fingerprint}.arrow"
    map_rows = partial(
        rows.map,
        columns,
        batched=True,
        remove_columns=["index"],
        features=COLUMNS,
        cache_file_name=str(file),
        new_fingerprint=fingerprint,
    )
    with disk_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return map_rows()
        except (pa.ArrowInvalid, OSError) as error:
            if not file.exists():
                raise
            warning(f"{file}: is damaged and is made again ({error})")
            file.unlink()
            return map_rows()
