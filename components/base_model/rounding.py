"""Base models whose weights had been quantized before, and a quantization that would undo their training.

A dequantized weight lies exactly on one of the few values that its block of weights can have. An adapter changes it by
much less than the distance between these values, so rounding it to the same type again returns the base's weight. Of
an adapter of SmolLM2-135M, 1 to 15 % was left in types of 4 to 6 bits, and 74 to 97 % in Q8_0, whose values are closer
(python -m tests.benchmarks.rounded_again).
"""

from pathlib import Path

from chatmetrics.components.base_model.config import text_config
from chatmetrics.components.base_model.files import read_object
from chatmetrics.components.errors import InputError

SOURCE = "gguf_source.json"  # in the folder of a dequantized GGUF file: what it was made from
LOSSY_BITS = 6
# llama.cpp's type for a row whose length is not a multiple of 256, which K-quants need.
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
ROW_OF_K_QUANTS = 256


def check_not_rounded_again(folder: Path, quantization: str) -> None:
    """Refuse to quantize a trained model to the type that its base had been rounded to before.

    Args:
        folder: the base model's folder, or the merged model's.
        quantization: llama.cpp's name of the mix of types, such as Q4_K_M.

    Raises:
        InputError: most of its weights would return to the base's.
    """
    if not (folder / SOURCE).is_file():
        return
    source = read_object(folder / SOURCE)
    hidden = int(text_config(read_object(folder / "config.json")).get("hidden_size", ROW_OF_K_QUANTS))
    if 0 < source.get("bits", 0) <= LOSSY_BITS and _main_type(quantization, hidden) == source["quantization"]:
        raise InputError(
            f"convert.quantization is {quantization}, but the base model's weights had been rounded to "
            f"{source['quantization']} before: rounding to the same values again would undo the training; choose "
            "another, for example Q8_0"
        )


def _main_type(quantization: str, row: int) -> str:
    """The type of most tensors in a mix."""
    name = quantization.removesuffix("_M")
    return FALLBACKS.get(name, name) if row % ROW_OF_K_QUANTS else name
