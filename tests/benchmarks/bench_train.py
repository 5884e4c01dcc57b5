"""Compares training with this project, TRL and LLaMA-Factory, on Spider with DDL schemas in the prompts.

All use the same base model, data, examples per optimizer step, precision and LoRA. TRL and LLaMA-Factory run in their
own environments, created in .cache/bench from the package index. `python -m tests.benchmarks.bench_train` prints the
same as `make bench`. CHATMETRICS_BENCH_BASE names another base model than the demo's (on a GPU, a 7B),
CHATMETRICS_BENCH_STEPS the number of steps (20), and CHATMETRICS_BENCH_PEAK_TFLOPS the device's peak, for MFU.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.nl2sql.prompts.template import dataset_template
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.train.data.token_cache import TokenizedExamples, tokenized
from chatmetrics.components.train.data.tokenization import load_tokenizer, tokenize
from chatmetrics.components.train.data.trees import cheapest_parts, tree_pack
from chatmetrics.components.train.launch import ENVIRONMENT
from chatmetrics.components.train.model.answer_loss import give_answer_loss

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "bench"
SPIDER = os.environ.get("CHATMETRICS_SPIDER_DIR", "")
BASE = Path(os.environ.get("CHATMETRICS_BENCH_BASE", ROOT / "pipelines" / "demo" / "base_model"))
STEPS = int(os.environ.get("CHATMETRICS_BENCH_STEPS", "20"))
PEAK_TFLOPS = float(os.environ.get("CHATMETRICS_BENCH_PEAK_TFLOPS", "0"))
EXAMPLES_PER_STEP = 16
HAS_GPU = torch.cuda.is_available()
# The published rate suits a 7B; with so small a base it would hardly change the loss.
LEARNING_RATE = 5e-5 if HAS_GPU else 1e-3
PRECISION = "bf16" if HAS_GPU else "fp32"
DEV_EXAMPLES = 128
TRL = ("trl==1.16.0", "datasets==5.2.0")
# Without these pins it installs a torch with another CUDA version than its torchaudio's, and does not start.
LLAMA_FACTORY = ("llamafactory==0.9.5", "torch==2.11.0", "torchaudio==2.11.0", "torchvision==0.26.0")
ATTENTION = "flash_attention_2" if HAS_GPU else "sdpa"  # for TRL, whose packing is made for the former

pytestmark = pytest.mark.skipif(not SPIDER, reason="CHATMETRICS_SPIDER_DIR is not set")


@dataclass(frozen=True)
class Run:
    """One row of the table."""

    name: str
    tool: str
    requirements: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def runs(examples: TokenizedExamples) -> list[Run]:
    trl = (*TRL, *(f"{name}=={version(name)}" for name in ("torch", "transformers", "peft", "accelerate")))
    # A packed row of TRL contains several examples; this many rows contain as many as a step.
    rows_per_step = max(1, round(EXAMPLES_PER_STEP * float(examples.lengths.mean()) / 2048))
    bfd = {"packing": True, "packing_strategy": "bfd", "attention": ATTENTION}
    bfd |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows_per_step}
    padded = {"attention": "sdpa", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    return [
        Run("this project, packed, 8 per schema", "chatmetrics"),
        Run("this project, packed, 16 per schema", "chatmetrics", options={"questions_per_schema": 16}),
        Run("this project, not packed", "chatmetrics", options={"packing": False, "questions_per_schema": 1}),
        Run("TRL, BFD packing", "trl", trl, bfd),
        Run("TRL, not packed", "trl", trl, padded),
        Run("LLaMA-Factory", "llamafactory", LLAMA_FACTORY),
        Run("LLaMA-Factory, neat packing", "llamafactory", LLAMA_FACTORY, _neat_packing(rows_per_step)),
    ]


def _neat_packing(rows_per_step: int) -> dict[str, Any]:
    return {
        "packing": True,
        "neat_packing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": rows_per_step,
    }


def base_in_full_precision(base: Path) -> Path:
    """A copy of the base model whose weights all tools load with the same values."""
    folder = CACHE / "base"
    folder.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        if path.suffix in {".json", ".jinja"}:
            (folder / path.name).write_bytes(path.read_bytes())
    dtype = torch.bfloat16 if HAS_GPU else torch.float32
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(folder)
    return folder


def spider(base: Path) -> Path:
    folder = CACHE / f"spider-{sha256_of(base / 'tokenizer.json')[:12]}"
    if folder.exists():
        return folder
    settings = {"format": "spider", "source": SPIDER, "schema": "ddl", "tokenizer": str(base), "cutoff_length": 2048}
    preprocess(PreprocessSettings.model_validate(settings), folder)
    return folder


def llama_factory_template(dataset: Path) -> str:
    """LLaMA-Factory's name of the dataset's template."""
    return str(yaml.safe_load((dataset / "llama_factory.yaml").read_bytes())["template"])


def python_of(run: Run) -> Path:
    """A Python interpreter with the packages that a run needs."""
    if not run.requirements:
        return Path(sys.executable)
    folder = CACHE / run.tool
    uv = str(Path(sys.executable).with_name("uv"))
    if not (folder / "ready").exists():
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *run.requirements]
        subprocess.run(install, check=True)
        (folder / "ready").touch()
    return folder / "bin" / "python"


def measure(
    run: Run, base: Path, dataset: Path, tokens: Path, folder: Path, changes: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Train in the tool's environment; `changes` are fields of the job that differ from those of this benchmark."""
    folder.mkdir()
    job = {
        "base": str(base),
        "dataset": str(dataset),
        "tokens": str(tokens),
        "output": str(folder / "output"),
        "measured": str(folder / "measured.json"),
        "steps": STEPS,
        "learning_rate": LEARNING_RATE,
        "precision": PRECISION,
        "gradient_checkpointing": HAS_GPU,
        "lora_rank": 8,
        "scheduler": "linear",
        "warmup_steps": 0,
        "template": llama_factory_template(dataset),
        "options": run.options,
        **changes,
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = [str(python_of(run)), str(Path(__file__).with_name("train_one.py")), run.tool, str(folder / "job.json")]
    log = folder / "log.txt"
    with log.open("w") as output:
        done = subprocess.run(command, check=False, stdout=output, stderr=output, env={**ENVIRONMENT, **os.environ})
    if done.returncode:
        sys.exit(f"{run.name} failed:\n{log.read_text()[-2000:]}")
    measured: dict[str, Any] = json.loads((folder / "measured.json").read_text())
    return measured


@torch.no_grad()
def dev_loss(base: Path, adapter: Path | None, dataset: Path) -> float:
    """Mean loss of the answer tokens of some dev questions, whose databases training never saw."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16 if HAS_GPU else torch.float32)
    give_answer_loss(model)
    device = "cuda" if HAS_GPU else "cpu"
    adapted = (PeftModel.from_pretrained(model, str(adapter)) if adapter else model).to(device).eval()
    questions = read_examples(dataset / "dev.jsonl")
    some = questions[:: len(questions) // DEV_EXAMPLES]
    examples = list(tokenize(some, load_tokenizer(base), dataset_template(dataset)))
    packs = [tree_pack(part) for part in cheapest_parts(examples, 2048, lambda tokens: 100 + tokens)]
    losses = [adapted(**{name: tensor.to(device) for name, tensor in pack.items()}) for pack in packs]  # type: ignore[attr-defined]
    return float(torch.cat(losses).mean())


def header(base: Path, dataset: Path, examples: TokenizedExamples, parameters: int) -> None:
    before, mean = dev_loss(base, None, dataset), examples.lengths.mean()
    print(f"\n{BASE.name}, {parameters / 1e6:.1f} M parameters, {PRECISION};", end=" ")
    print(f"{STEPS} steps of {EXAMPLES_PER_STEP} examples")
    print(f"of {len(examples)} of {mean:.0f} tokens; loss on {DEV_EXAMPLES} dev questions {before:.3f} before")
    columns = f"{'':36} examples/s  cpu s/example  tokens/example  peak MiB  (before)  loss  dev loss"
    print(columns + ("    MFU" if PEAK_TFLOPS else ""))


def row(run: Run, measured: dict[str, Any], loss: float, flops_per_example: float) -> None:
    seconds = measured["seconds"]
    count = measured.get("examples", measured["steps"] * EXAMPLES_PER_STEP)
    mfu = f" {flops_per_example * count / seconds / PEAK_TFLOPS / 1e12:6.1%}" if PEAK_TFLOPS else ""
    cost = f"{count / seconds:10.2f} {measured['cpu_seconds'] / count:14.3f} {measured['tokens'] / count:15.0f}"
    memory = f"{measured['peak_mib']:9.0f} {measured['peak_mib_before']:9.0f}"
    print(f"{run.name:36} {cost} {memory} {measured['loss']:5.3f} {loss:9.3f}{mfu}", flush=True)


def test_bench_train(tmp_path: Path) -> None:
    base = base_in_full_precision(BASE)
    dataset = spider(base)
    dataset_sha256 = sha256_of(dataset / "train.jsonl")
    examples = tokenized(dataset, dataset_sha256, base, load_tokenizer(base), 2048)
    parameters = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(base).parameters())
    header(base, dataset, examples, parameters)
    # Forward, and backward without gradients of frozen weights, for the tokens of an example.
    flops = 4 * parameters * float(examples.lengths.mean())
    for number, run in enumerate(runs(examples)):
        folder = tmp_path / str(number)
        measured = measure(run, base, dataset, examples.file, folder)
        row(run, measured, dev_loss(base, folder / "output" / "adapter", dataset), flops)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-s", "-q", "-o", "python_files=bench_*.py", *sys.argv[1:]]))
