"""Merge of an adapter into its base model, with a check that the saved model computes the same as the two."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from chatmetrics.components import console
from chatmetrics.components.base_model.check import check_base_model
from chatmetrics.components.base_model.config import text_config
from chatmetrics.components.base_model.files import check_kind, read_object
from chatmetrics.components.base_model.loading import has_tied_head, load_complete
from chatmetrics.components.base_model.references import local_model
from chatmetrics.components.base_model.rounding import SOURCE
from chatmetrics.components.errors import InputError
from chatmetrics.components.merge.settings import MergeSettings
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, FILE, PromptTemplate, write_merged_template
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.storage.folder import atomic_folder

# Copied from the base: saving a tokenizer or model drops settings that converters and servers need, such as
# add_bos_token.
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    SOURCE,
)

SCHEMA = "CREATE TABLE hotel (id INTEGER PRIMARY KEY, name TEXT, rating REAL);\n"
TEST_QUESTIONS = (
    ("", "How many hotels are there?"),
    (SCHEMA, "2024年上海浦东新区评分前10的酒店订单量"),
    (SCHEMA, "Which 3 hotels are rated best, and where?"),
)


@dataclass(frozen=True)
class MergeReport:
    """Result of a merge.

    Attributes:
        max_difference: largest difference of a logit on the test prompts, relative to the largest logit.
        tolerance: largest permitted difference.
        files: names of the merged model's files.
    """

    max_difference: float
    tolerance: float
    files: tuple[str, ...]


def merge(settings: MergeSettings, base_model: str, adapter: Path, output: Path, revision: str = "") -> MergeReport:
    """Write base and adapter as one model in the base's dtype, with the base's tokenizer and configuration files.

    The merge is computed in fp32 on the CPU and takes 4 bytes of memory per parameter.

    Args:
        settings: the recipe's `merge` section.
        base_model: a folder, URI or Hub name; see `local_model`.
        adapter: a PEFT folder.
        output: the merged model's folder, which appears complete or not at all.
        revision: branch, tag or commit of a Hub name.

    Raises:
        InputError: `check_base_model` refuses the base, the adapter does not belong to it, or the merged model's
            logits differ, are not finite or all zero.
        StorageError: the disk is full or not writable.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    base = local_model(base_model, revision)
    check_base_model(base)
    template = trained_template(adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [template.prompt(schema, instruction("hotel"), question) for schema, question in TEST_QUESTIONS]
    samples = [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in prompts]
    model = load_complete(base, dtype="auto")
    dtype = model.dtype
    model.float()  # type: ignore[no-untyped-call]
    adapted = _with_adapter(model, base_model, adapter)
    expected = _logits(adapted, samples)
    if not all(logits.isfinite().all() and logits.any() for logits in expected):
        raise InputError(
            f"base {base_model} with adapter {adapter} computes logits that are all zero or not finite; copy or "
            "download the base model again, or train again"
        )
    merged = adapted.merge_and_unload()
    del adapted, model
    # In fp32 a difference is a fault of the merge. Rounded to the base's dtype it also has the error of rounding.
    exact = _relative_difference(expected, _logits(merged, samples))
    _check_difference(output, exact, settings.tolerance, "tolerance")
    merged = merged.to(dtype)
    # transformers refuses to save some generation configs. The base's own file is copied instead.
    merged.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    is_full = dtype == torch.float32
    tolerance = settings.tolerance if is_full else settings.half_tolerance
    with atomic_folder(output) as folder:
        merged.save_pretrained(folder, max_shard_size=settings.max_shard_size)
        has_separate_head = not has_tied_head(merged)
        del merged
        _copy_files(base, folder)
        write_merged_template(folder, template)
        if has_separate_head:
            _record_separate_head(folder / "config.json")
        difference = _relative_difference(expected, _logits(_load(folder), samples))
        _check_difference(output, difference, tolerance, "tolerance" if is_full else "half_tolerance")
        files = tuple(sorted(path.name for path in folder.iterdir()))
    console.note(f"the merged model's logits differ by {difference:.2g} of the largest (tolerance {tolerance:.2g})")
    return MergeReport(difference, tolerance, files)


def provenance(adapter: Path) -> dict[str, str]:
    """The hashes of an adapter and of what it was made from, for a published model's manifest.

    With early stopping there are also the ids of the dev questions that chose the adapter, as JSON: they are no fair
    test of the model.

    Raises:
        InputError: train did not write the folder.
    """
    run = _run(adapter)
    chose_adapter = run.get("early_stopping", {}).get("questions")
    return {
        "base_model": run["base_model"],
        "base_fingerprint": run["base_fingerprint"],
        "dataset_sha256": run["dataset_sha256"],
        "adapter_sha256": sha256_of(adapter / "adapter_model.safetensors"),
        **({"early_stopping_questions": json.dumps(chose_adapter)} if chose_adapter else {}),
    }


def trained_template(adapter: Path) -> PromptTemplate:
    """The prompt template that an adapter was trained with; DeepSeek's if its run.json does not name one.

    Raises:
        InputError: train did not write the folder.
    """
    if not (adapter / "run.json").is_file():
        console.warning(
            f"{adapter} has no run.json, so another program trained it: the merged model is asked with the prompt "
            f"template {DEEPSEEK3.name}; if it was trained with another, write its text to {FILE} in the merged folder"
        )
        return DEEPSEEK3
    return PromptTemplate.parse(_run(adapter).get("prompt_template") or DEEPSEEK3.text)


def _run(adapter: Path) -> dict[str, Any]:
    path = adapter / "run.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; name the adapter folder that train wrote")
    return read_object(path)


def _with_adapter(model: PreTrainedModel, base_model: str, adapter: Path) -> PeftModel:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise InputError(f"{adapter / name}: no such file; name the adapter folder that train wrote")
    kind = read_object(adapter / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise InputError(f"{adapter / 'adapter_config.json'}: not LoRA but {kind!r}; name the folder that train wrote")
    check_kind(adapter / "adapter_model.safetensors")
    mismatch = f"adapter {adapter} does not belong to the base model {base_model}"
    try:
        with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _separate_tied_head(model, shapes)
        adapted = PeftModel.from_pretrained(model, adapter)
    except SafetensorError as error:
        raise InputError(f"{adapter / 'adapter_model.safetensors'}: damaged ({error}); train again") from error
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{mismatch}: {_last_line(error)}") from error
    # PEFT silently ignores tensors that do not belong to the model.
    # Without the base's own embedding and head, which it would add for some targets.
    own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if differing := sorted(name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name)):
        raise InputError(f"{mismatch}: {differing[0]} is in only one of them; name the base model of the training run")
    return adapted.eval()


def _separate_tied_head(model: PreTrainedModel, adapter: Iterable[str]) -> None:
    """Give a head that shares the embedding's weights a copy, if the adapter changes one of the two."""
    outer = {model.get_input_embeddings(), model.get_output_embeddings()}
    prefixes = tuple(f"base_model.model.{name}." for name, module in model.named_modules() if module in outer)
    if not has_tied_head(model) or not any(name.startswith(prefixes) for name in adapter):
        return
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def _record_separate_head(path: Path) -> None:
    """Make a config.json that ties head and embedding say that they are separate, as they are in the checkpoint."""
    if not AutoConfig.from_pretrained(path.parent).get_text_config().tie_word_embeddings:
        return
    config = read_object(path)
    for part in (config, text_config(config)):
        part["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.note(
        f"{path.name} of the merged model has tie_word_embeddings false, because head and embedding now differ"
    )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


def _load(folder: Path) -> PreTrainedModel:
    model = load_complete(folder, dtype=torch.float32)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _logits(model: torch.nn.Module, samples: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of every position of the samples, each of shape (1, tokens, vocabulary)."""
    with torch.inference_mode():
        return [model(input_ids=sample).logits for sample in samples]


def _check_difference(output: Path, difference: float, tolerance: float, setting: str) -> None:
    if not difference <= tolerance:  # NaN is not
        raise InputError(
            f"{output}: not written, because its logits differ from base and adapter by {difference:.2g} of the "
            f"largest, more than merge.{setting} of {tolerance:.2g}; check the adapter, or raise the setting"
        )


def _relative_difference(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> float:
    largest = max(logits.abs().max().item() for logits in expected)
    difference = torch.stack([(one - other).abs().max() for one, other in zip(expected, actual, strict=True)]).max()
    return float(difference) / largest


def _copy_files(base: Path, folder: Path) -> None:
    for name in COPIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
