"""How much of an adapter is left if base and student are quantized to the same type.

    python -m tests.benchmarks.rounded_again BASE MERGED

BASE and MERGED are Hugging Face folders. For some matrices and each type, the base is rounded to the type, changed by
the adapter (the difference of the two folders), and rounded again. Printed is the share of the change that is left: its
projection on the change, for the same type and for Q8_0.
"""

import argparse
from pathlib import Path

import gguf
import libgguf  # type: ignore[import-untyped]
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open

TYPES = (Type.Q8_0, Type.Q6_K, Type.Q5_0, Type.Q4_K, Type.Q4_1, Type.Q4_0)
MATRICES = ("mlp.down_proj", "mlp.up_proj", "self_attn.v_proj")
LAYERS = (3, 15, 25)


def main() -> None:
    """Print a line for each type: the smallest and largest share over the matrices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("merged", type=Path)
    arguments = parser.parse_args()
    names = [f"model.layers.{layer}.{matrix}.weight" for layer in LAYERS for matrix in MATRICES]
    pairs = [(weights(arguments.base, name), weights(arguments.merged, name)) for name in names]
    print("type   left in the same type   left in Q8_0")
    for type in TYPES:
        fitting = [pair for pair in pairs if pair[0].shape[1] % gguf.GGML_QUANT_SIZES[type][0] == 0]
        shares = [[share_left(*pair, type, again) for pair in fitting] for again in (type, Type.Q8_0)]
        print(f"{type.name:6} " + "".join(f"{min(found):10.0%} to {max(found):4.0%}" for found in shares))


def share_left(base: np.ndarray, merged: np.ndarray, type: Type, again: Type) -> float:
    """The share of the adapter's change that is left of a base of one type in a student of another."""
    change = merged - base
    before = rounded(base, type)
    student = torch.from_numpy(before + change).bfloat16().float().numpy()  # as merge saves it
    return float(((rounded(student, again) - before) * change).sum() / (change * change).sum())


def rounded(values: np.ndarray, type: Type) -> np.ndarray:
    """The values in a type."""
    return gguf.dequantize(np.asarray(libgguf.quantize_rows(np.ascontiguousarray(values), type)), type)


def weights(folder: Path, name: str) -> np.ndarray:
    """A matrix of a model in one file."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return np.asarray(file.get_tensor(name).float().numpy())


if __name__ == "__main__":
    main()
