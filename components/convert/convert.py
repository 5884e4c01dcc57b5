"""A Hugging Face folder to a GGUF file: llama.cpp's converter, then quantization, then a check of the tokens."""

import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatmetrics.components.convert.programs import converter, llama_quantize, run
from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.convert.tokenizer_check import check_tokens
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.nl2sql.prompt import PROMPT_TEMPLATE
from chatmetrics.components.storage.files import disk_errors

UNFINISHED = ".unfinished-"
# safetensors' name of a type to the converter's: the unquantized file keeps the checkpoint's, so that quantizing is
# the only rounding.
OWN_TYPES = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
# llama-quantize's words on a tensor whose rows are no multiple of the block of its type, and at the end on all of them.
FALLBACK = re.compile(r"^warning: (\S+) +- ncols .*-> falling back to +(\S+)", re.MULTILINE)
FALLBACKS = re.compile(r"WARNING: (\d+) of \d+ tensor\(s\) required fallback quantization")


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion made.

    `fallbacks` names the tensors whose rows do not fit the type that the mix has for them, with the type they got.
    """

    gguf: Path
    unquantized: Path | None
    fallbacks: dict[str, str]

    @property
    def files(self) -> list[Path]:
        """The files to publish."""
        return [path for path in (self.gguf, self.unquantized) if path]


def convert(settings: ConvertSettings, model: Path, output: Path, name: str = "model") -> ConvertReport:
    """Convert and quantize a model; the files appear in `output` when they are complete and checked.

    Args:
        settings: quantization and what to keep.
        model: a Hugging Face folder with safetensors.
        output: folder for NAME-QUANTIZATION.gguf and convert.log, the programs' full log.
        name: first part of the file names.

    Raises:
        InputError: the folder is no model, or the converter or quantizer refused it, or llama.cpp would split text
            into other tokens than the model was trained with.
        ServiceError: a program is missing.
        StorageError: the disk is full or not writable.
    """
    _check_context(settings.context_length, model)
    own_type = _checkpoint_type(model)
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
            check_tokens(quantized, model)
            kept = [quantized, plain] if settings.keep_unquantized and plain != quantized else [quantized]
            placed = [path.replace(output / path.name) for path in kept]
    return ConvertReport(
        gguf=placed[0],
        unquantized=placed[1] if len(placed) > 1 else None,
        fallbacks=fallbacks,
    )


def description(settings: ConvertSettings, model: Path, report: ConvertReport) -> dict[str, Any]:
    """What a manifest says of a converted model: how it was quantized and how to serve it."""
    end = _json(model / "tokenizer_config.json").get("eos_token") or ()
    return {
        "quantization": settings.quantization,
        "fallbacks": report.fallbacks,
        "prompt_template": PROMPT_TEMPLATE,
        "context_length": settings.context_length,
        "stop": [end["content"] if isinstance(end, dict) else end] if end else [],
    }


def prompt_description(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of the schema in the prompt, from the recipe's `preprocess` section; {} says nothing."""
    keys = {"schema_form": "schema", "sample_values": "sample_values", "cutoff_length": "cutoff_length"}
    return {field: preprocess[key] for field, key in keys.items() if key in preprocess}


def _convert(program: Path, model: Path, target: Path, type: str, log: Path) -> None:
    wrapper = "chatmetrics.components.convert.llama_cpp"
    command = [sys.executable, "-m", wrapper, str(program), str(model), "--outtype", type, "--outfile", str(target)]
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    said = run(command, log, f"converting {model.name} to GGUF", target, size)
    for line in said.splitlines():
        if line.startswith("note: "):
            print(line, flush=True)


def _quantize(program: str, plain: Path, target: Path, quantization: str, log: Path) -> dict[str, str]:
    """Write the quantized file with llama-quantize if there is one; returns the tensors that got another type."""
    if program:
        command = [program, str(plain), str(target), quantization]
        fallbacks = _fallbacks(run(command, log, f"quantizing {plain.name}", target, plain.stat().st_size), log)
    else:
        # Imported here because libgguf is not needed where llama-quantize is, as in llama.cpp's own image.
        from chatmetrics.components.convert.quantize import MIXES, quantize

        print("llama-quantize is not installed: quantizing with libgguf, which writes the same bytes", flush=True)
        fallbacks = quantize(plain, target, MIXES[quantization])
    if fallbacks:
        counts = ", ".join(f"{count} as {type}" for type, count in Counter(fallbacks.values()).items())
        print(f"{target.name}: {len(fallbacks)} tensors have rows too short for {quantization}: {counts}", flush=True)
    return fallbacks


def _fallbacks(said: str, log: Path) -> dict[str, str]:
    found = {name: type.lower() for name, type in FALLBACK.findall(said)}
    counted = FALLBACKS.search(said)
    if len(found) != (int(counted[1]) if counted else 0):
        raise ServiceError(f"this llama-quantize words its fallbacks in a way that is not understood: see {log}")
    return found


def _checkpoint_type(model: Path) -> str:
    """The converter's name of the widest type among the checkpoint's tensors."""
    shards = sorted(model.glob("*.safetensors"))
    if not shards:
        raise InputError(f"{model} holds no *.safetensors: name the folder of a Hugging Face model")
    found = {tensor["dtype"] for shard in shards for tensor in _header(shard).values() if "dtype" in tensor}
    unknown = found - OWN_TYPES.keys()
    if unknown:
        raise InputError(f"{model}: weights of type {', '.join(sorted(unknown))}; save them as BF16, F16 or F32")
    return next(OWN_TYPES[type] for type in ("F32", "F16", "BF16") if type in found)


def _header(shard: Path) -> dict[str, Any]:
    """The header of a safetensors file: 8 bytes of length, then JSON."""
    with disk_errors(shard), shard.open("rb") as file:
        content = file.read(int.from_bytes(file.read(8), "little"))
    try:
        return dict(json.loads(content))
    except ValueError as error:
        raise InputError(f"{shard} is no safetensors file, or is cut short: copy it again") from error


def _check_context(wanted: int, model: Path) -> None:
    longest = _json(model / "config.json").get("max_position_embeddings", wanted)
    if wanted > longest:
        raise InputError(f"convert.context_length is {wanted}, but {model} takes {longest} tokens: lower it")


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: name the folder of a Hugging Face model") from error
