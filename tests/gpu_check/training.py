"""Runs the project's own training code on random base models, and measures it."""

import json
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from chatmetrics.components.nl2sql.example import Example, write_examples
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.train import fine_tune
from chatmetrics.components.train import launch as launcher
from chatmetrics.components.train.data.tokenization import load_tokenizer
from chatmetrics.components.train.data.trees import TokenizedExample, tree_pack
from chatmetrics.components.train.estimate.memory import GIB, GPU_OVERHEAD, memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.job import TrainingJob
from chatmetrics.components.train.model.base import add_adapter, load_model
from chatmetrics.components.train.model.device import DeviceSettings, usable_precision
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.throughput import ThroughputMeter, peak_tflops
from tests.gpu_check.checks import DoesNotFit, Found
from tests.gpu_check.place import Place
from tests.models import tiny_base
from tests.train import small_dataset as small

# Sizes of Qwen2.5-0.5B and of DeepSeek-R1-Distill-Qwen-7B, and of a model for a CPU.
CONFIGS: dict[str, dict[str, Any]] = {
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "tie_word_embeddings": True,
    },
}
# Tokens of Spider's training questions with DDL schemas: of the schema and the instruction, of a question, and of its
# answer; see pipelines/estimate.py.
SCHEMA_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 342, 17, 37
QUESTIONS_PER_DATABASE = 8
# What does not fit is measured with these changes, the smallest first.
SMALLER: tuple[dict[str, Any], ...] = (
    {},
    {"gradient_checkpointing": True},
    {"batch_size": 1, "gradient_accumulation": 16},
    {"batch_size": 1, "gradient_accumulation": 16, "gradient_checkpointing": True},
)


@dataclass(frozen=True)
class Measured:
    """A run: its progress records, and what was computed until the end of each step.

    Attributes:
        records: the lines of progress.jsonl.
        steps: for each step the time in seconds, and counts of tokens, computed tokens and operations so far.
        largest_pack: most tokens that were computed at once.
        precision: what the run was computed in.
        attention: the attention implementation.
    """

    records: list[dict[str, Any]]
    steps: list[tuple[float, int, int, float]]
    largest_pack: int
    precision: str
    attention: str

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [record["loss"] for record in self.records]


class RecordingMeter(ThroughputMeter):
    """Also records each step."""

    made: "RecordingMeter"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.steps: list[tuple[float, int, int, float]] = []
        self.largest_pack = 0
        RecordingMeter.made = self

    def count(self, packs: list[int], answer_tokens: int) -> None:
        super().count(packs, answer_tokens)
        self.largest_pack = max(self.largest_pack, *packs)
        counts = self._counts
        self.steps.append((monotonic(), counts.tokens, counts.computed_tokens, counts.flops))


def precision(place: Place) -> str:
    """The half precision of the device; fp32 on a CPU."""
    return usable_precision(TrainSettings()) if place.has_gpu else "fp32"


def small_base(place: Place) -> Path:
    """A small base model, which all checks share."""
    folder = place.folder / "small-base"
    return folder if folder.exists() else tiny_base(folder, hidden=64 if place.tiny else 256, layers=2)


def small_dataset(place: Place) -> Path:
    """A dataset for it, with dev questions and their database."""
    folder = place.folder / "small-dataset"
    if not folder.exists():
        small.write_dataset(folder)
        write_examples(folder / "dev.jsonl", [small.example(number, city) for number, city in enumerate(small.CITIES)])
        (folder / "databases").mkdir()
        with sqlite3.connect(folder / "databases" / "hotel.sqlite") as database:
            database.execute("CREATE TABLE hotel (name TEXT, city TEXT)")
            database.executemany("INSERT INTO hotel VALUES (?, ?)", [(city, city) for city in small.CITIES])
        (folder / "dataset_card.json").write_text('{"databases": "databases"}', encoding="utf-8")
    return folder


def train(place: Place, base: Path, dataset: Path, settings: TrainSettings) -> Measured:
    """Train in this process, as `accelerate launch` would in another."""
    output = place.folder / "adapter"
    shutil.rmtree(output, ignore_errors=True)
    checkpoints = place.folder / "checkpoints"
    shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoints.mkdir()
    job = TrainingJob(
        settings=settings.model_copy(update={"checkpoint_steps": 10**6, "checkpoint_minutes": 0}),
        dataset=dataset,
        dataset_sha256=sha256_of(dataset / "train.jsonl"),
        base_model=str(base),
        base_fingerprint="gpu-check",
        base_folder=base,
        output=output,
        checkpoints=checkpoints,
        ending=place.folder / "ending.json",
    )
    with patch.object(fine_tune, "ThroughputMeter", RecordingMeter):
        fine_tune.fine_tune(job)
    run = json.loads((output / "run.json").read_bytes())
    meter = RecordingMeter.made
    return Measured(_records(output), meter.steps, meter.largest_pack, run["precision"], run["attention"])


def launch(place: Place, base: Path, dataset: Path, settings: TrainSettings) -> float:
    """Train with `accelerate launch`; return the last loss."""
    output = place.folder / f"adapter-of-{settings.processes}"
    launcher.train(settings, dataset, str(base), output, place.folder / f"checkpoints-of-{settings.processes}")
    return float(_records(output)[-1]["loss"])


def _records(adapter: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (adapter / "progress.jsonl").read_text(encoding="utf-8").splitlines()]


def losses_and_gradients(place: Place, base: Path, attention: str, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of a tree, and all gradients of a fresh adapter in a row, both in fp32 on the CPU."""
    settings = TrainSettings(precision=precision)  # type: ignore[arg-type]
    model = load_model(base, settings, DeviceSettings(place.has_gpu, precision, attention)).to(place.device)
    torch.manual_seed(0)
    adapted = add_adapter(model, settings).to(place.device).train()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:  # zero in a fresh adapter, so that the gradients of the others would be zero too
            torch.nn.init.normal_(weight, std=0.02)
    random = np.random.default_rng(0)
    schema = random.integers(1, 300, size=40 if place.tiny else 342, dtype=np.int32)
    examples = [
        TokenizedExample(np.concatenate([schema, random.integers(1, 300, size=54, dtype=np.int32)]), len(schema) + 17)
        for _ in range(3 if place.tiny else 8)
    ]
    pack = {name: tensor.to(place.device) for name, tensor in tree_pack(examples).items()}  # type: ignore[attr-defined]
    half = precision != "fp32"
    with torch.autocast(place.device, torch.bfloat16 if precision == "bf16" else torch.float16, enabled=half):
        losses = adapted(**pack)
    losses.mean().backward()
    gradients = [weight.grad.flatten() for weight in adapted.parameters() if weight.grad is not None]
    return losses.detach().float().cpu(), torch.cat(gradients).float().cpu()


def measure_speed(place: Place, found: Found, size: str, published: bool) -> None:
    """Train a random base for a few steps; add speed, MFU, memory and its estimate, and the losses."""
    config = CONFIGS["tiny" if place.tiny else size]
    sizes = Sizes.of(config)
    warm_up, steps = (1, 2) if place.tiny else (4, 8)
    settings = TrainSettings(packing=not published, max_steps=warm_up + steps, logging_steps=1)
    settings = settings.model_copy(update={"precision": precision(place)})
    settings = fitted(settings, sizes, place)
    base = _random_base(place, size, config)
    dataset = _spider_like(place, load_tokenizer(base), settings)
    if place.has_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    measured = train(place, base, dataset, settings)
    (began, *before), (ended, *after) = measured.steps[warm_up - 1], measured.steps[-1]
    tokens, computed, flops = ((late - early) / (ended - began) for early, late in zip(before, after, strict=True))
    batch = f"{settings.batch_size} x {settings.gradient_accumulation}"
    found |= {"precision": measured.precision, "attention": measured.attention, "batch": batch}
    found |= {"gradient_checkpointing": settings.gradient_checkpointing, "largest_pack": measured.largest_pack}
    found |= {"tokens_per_second": tokens, "computed_tokens_per_second": computed, "losses": measured.losses}
    if place.has_gpu:
        peak = 1e12 * peak_tflops(torch.cuda.get_device_name(), measured.precision)
        found["mfu"] = flops / peak if peak else "unknown"
        found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        found["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    dense = measured.attention != "flex_attention"
    estimate = memory_of(sizes, settings, tokens=measured.largest_pack, dense=dense, gpu=place.has_gpu)
    # The overhead is outside of what torch allocates.
    found["estimated_gib"] = (estimate.total - (GPU_OVERHEAD if place.has_gpu else 0)) / GIB


def fitted(settings: TrainSettings, sizes: Sizes, place: Place) -> TrainSettings:
    """The settings, with the smallest change that makes them fit the GPU.

    Raises:
        DoesNotFit: none does.
    """
    if not place.has_gpu:
        return settings
    available = torch.cuda.get_device_properties(0).total_memory
    for change in SMALLER:
        changed = settings.model_copy(update=change)
        needed = memory_of(sizes, changed).total
        if needed < 0.95 * available:
            return changed
    raise DoesNotFit(f"needs {needed / GIB:.1f} GiB, this GPU has {available / GIB:.1f}")


def _random_base(place: Place, size: str, config: dict[str, Any]) -> Path:
    """A base model with random weights, which the checks of one size share; a 7B has 15 GB."""
    folder = place.folder / f"base-{size}"
    if (folder / "complete").exists():
        return folder
    free, needed = shutil.disk_usage(place.folder).free, 2 * Sizes.of(config).parameters
    if free < 1.1 * needed:
        raise DoesNotFit(f"the base has {needed / GIB:.1f} GiB, {place.folder} has {free / GIB:.1f} GiB free")
    tiny_base(folder)  # for its tokenizer
    (folder / "model.safetensors").unlink()
    tokenizer = load_tokenizer(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision(place)]
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(place.device):
        model = Qwen2ForCausalLM(Qwen2Config(**config, **ids, max_position_embeddings=32768))
    torch.set_default_dtype(default)
    model.save_pretrained(folder, max_shard_size="4GB")
    (folder / "complete").touch()
    return folder


def _spider_like(place: Place, tokenizer: PreTrainedTokenizerBase, settings: TrainSettings) -> Path:
    """A dataset whose prompts and answers have about as many tokens as Spider's with DDL schemas."""
    folder = place.folder / "spider-like"
    folder.mkdir(exist_ok=True)
    text = RandomText(tokenizer)
    examples: list[Example] = []
    for number in range(settings.max_steps * settings.examples_per_step):
        if number % QUESTIONS_PER_DATABASE == 0:
            database, schema = (
                f"d{number}",
                text.of(10 if place.tiny else SCHEMA_TOKENS - text.tokens(instruction("d"))),
            )
        question, answer = text.of(QUESTION_TOKENS), text.of(ANSWER_TOKENS)
        made = Example(
            f"q{number}",
            database,
            question,
            answer,
            "aggregate",
            "train",
            schema,
            instruction(database),
            question,
            answer,
        )
        examples.append(made)
    write_examples(folder / "train.jsonl", examples)
    return folder


class RandomText:
    """Makes texts of random words that have a given number of tokens, or a few more."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._random = np.random.default_rng(0)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        words = {"".join(self._random.choice(letters, size)) for size in self._random.integers(2, 9, size=200)}
        self._words = sorted(words)
        self._tokenizer = tokenizer
        self._tokens = [self.tokens(f" {word}") for word in self._words]

    def tokens(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def of(self, tokens: int) -> str:
        """A text of this many tokens."""
        chosen: list[str] = []
        while tokens > 0:
            number = int(self._random.integers(len(self._words)))
            chosen.append(self._words[number])
            tokens -= self._tokens[number]
        return " ".join(chosen)
