"""Conversion of a Hugging Face model to GGUF: llama.cpp's converter, quantization, and a check of the tokenizer."""

import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.base_model.check import CheckedModel, check_base_model
from chatmetrics.components.base_model.config import text_config
from chatmetrics.components.base_model.files import read_object
from chatmetrics.components.base_model.rounding import check_not_rounded_again
from chatmetrics.components.convert.programs import converter, llama_quantize, run
from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.convert.tokenizer_check import check_tokens
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.nl2sql.prompts.chat_template import choose_template
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate, merged_template
from chatmetrics.components.storage.files import disk_errors

UNFINISHED = ".unfinished-"
NOTE = "note: "  # begins a line of the converter's output that a person should see
# The converter's name of each safetensors type. The unquantized file keeps the checkpoint's type, so that quantization
# is the only rounding.
OWN_TYPES = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
# llama-quantize's message on a tensor whose row length is not a multiple of the type's block size, and its last message
# with the number of such tensors.
FALLBACK = re.compile(r"^warning: (\S+) +- ncols .*-> falling back to +(\S+)", re.MULTILINE)
FALLBACKS = re.compile(r"WARNING: (\d+) of \d+ tensor\(s\) required fallback quantization")


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """Result of a conversion.

    Attributes:
        gguf: the quantized file.
        template: the template of the model's prompts.
        unquantized: the unquantized file, if it is kept.
        fallbacks: tensors whose rows do not fit the type in the mix, with the type that was used instead.
    """

    gguf: Path
    template: PromptTemplate
    unquantized: Path | None
    fallbacks: dict[str, str]

    @property
    def files(self) -> list[Path]:
        """The files to publish."""
        return [path for path in (self.gguf, self.unquantized) if path]


def convert(settings: ConvertSettings, model: Path, output: Path, name: str = "model") -> ConvertReport:
    """Convert and quantize a model. The files appear in `output` once they are complete and checked.

    Args:
        settings: the recipe's `convert` section.
        model: a Hugging Face folder with safetensors.
        output: folder for NAME-QUANTIZATION.gguf and for convert.log, the full log of the programs.
        name: first part of the file names.

    Raises:
        InputError: `check_base_model` refuses the model, the converter or quantizer does, llama.cpp would split text
            into other tokens than those that the model was trained with, or quantization would undo the training.
        ServiceError: a program is missing.
        StorageError: the disk is full or not writable.
    """
    checked = check_base_model(model)
    template = template_of(settings, model)
    if merged_template(model):  # a trained model; a base loses nothing
        check_not_rounded_again(model, settings.quantization)
    _check_context(settings.context_length, checked)
    own_type = _checkpoint_type(checked)
    program, quantizer = converter(), llama_quantize()
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        log = output / "convert.log"
        log.unlink(missing_ok=True)
        for left_by_a_kill in output.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left_by_a_kill)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=output) as work:
            plain_type = "f16" if settings.quantization == "F16" else own_type
            plain = Path(work, f"{name}-{plain_type.upper()}.gguf")
            _convert(program, model, plain, plain_type, log)
            if settings.quantization == "F16":
                quantized, fallbacks = plain, dict[str, str]()
            else:
                quantized = Path(work, f"{name}-{settings.quantization}.gguf")
                fallbacks = _quantize(quantizer, plain, quantized, settings.quantization, log)
            check_tokens(quantized, model, template)
            kept = [quantized, plain] if settings.keep_unquantized and plain != quantized else [quantized]
            placed = [path.replace(output / path.name) for path in kept]
    return ConvertReport(
        gguf=placed[0],
        template=template,
        unquantized=placed[1] if len(placed) > 1 else None,
        fallbacks=fallbacks,
    )


def description(settings: ConvertSettings, model: Path, report: ConvertReport) -> dict[str, Any]:
    """The manifest's fields on a model's quantization and on how to serve it."""
    eos = read_object(model / "tokenizer_config.json").get("eos_token")
    eos = eos["content"] if isinstance(eos, dict) else eos
    return {
        "quantization": settings.quantization,
        "fallbacks": report.fallbacks,
        "prompt_template": report.template.text,
        "context_length": settings.context_length,
        "stop": list(dict.fromkeys(filter(None, [report.template.stop, eos]))),
    }


def template_of(settings: ConvertSettings, model: Path) -> PromptTemplate:
    """The template of a model's prompts: the one that it was trained with, or that of the settings for a base model.

    Raises:
        InputError: it cannot be read, or the base's own chat template cannot be used.
    """
    return merged_template(model) or choose_template(settings.base_template or "auto", model, "convert.base_template")


def prompt_description(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's fields on the schema in the prompt, from the recipe's `preprocess` section."""
    keys = {"schema_form": "schema", "sample_values": "sample_values", "cutoff_length": "cutoff_length"}
    return {field: preprocess[key] for field, key in keys.items() if key in preprocess}


def _convert(program: Path, model: Path, target: Path, type: str, log: Path) -> None:
    wrapper = "chatmetrics.components.convert.llama_cpp"
    command = [sys.executable, "-m", wrapper, str(program), str(model), "--outtype", type, "--outfile", str(target)]
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    output = run(command, log, f"converting {model.name} to GGUF", target, size)
    for line in output.splitlines():
        if line.startswith(NOTE):
            console.note(line.removeprefix(NOTE))


def _quantize(program: str, plain: Path, target: Path, quantization: str, log: Path) -> dict[str, str]:
    """Write the quantized file, with llama-quantize if it is installed. Returns the tensors that got another type."""
    if program:
        command = [program, str(plain), str(target), quantization]
        fallbacks = _fallbacks(run(command, log, f"quantizing {plain.name}", target, plain.stat().st_size), log)
    else:
        # Imported here because libgguf is not needed where llama-quantize is installed, as in llama.cpp's own image.
        from chatmetrics.components.convert.quantize import MIXES, quantize

        console.info("llama-quantize is not installed: quantizing with libgguf, which writes the same bytes")
        fallbacks = quantize(plain, target, MIXES[quantization])
    if fallbacks:
        counts = ", ".join(f"{count} as {type}" for type, count in Counter(fallbacks.values()).items())
        console.info(f"{target.name}: {len(fallbacks)} tensors have rows that do not fit {quantization}: {counts}")
    return fallbacks


def _fallbacks(output: str, log: Path) -> dict[str, str]:
    """Read the tensors that got another type from llama-quantize's output."""
    found = {name: type.lower() for name, type in FALLBACK.findall(output)}
    counted = FALLBACKS.search(output)
    if len(found) != (int(counted[1]) if counted else 0):
        raise ServiceError(
            f"llama-quantize reports fallback types in an unknown form: see {log}, or install another version"
        )
    return found


def _checkpoint_type(model: CheckedModel) -> str:
    """The converter's name of the widest type in the checkpoint."""
    found = {tensor.dtype for tensor in model.tensors.values()}
    return next(OWN_TYPES[type] for type in ("F32", "F16", "BF16") if type in found)


def _check_context(wanted: int, model: CheckedModel) -> None:
    longest = text_config(model.config).get("max_position_embeddings", wanted)
    if wanted > longest:
        raise InputError(f"convert.context_length is {wanted}, but {model.folder} supports {longest} tokens: lower it")
