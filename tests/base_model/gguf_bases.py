"""GGUF files of random base models, with byte-level vocabularies that are trained on the spot."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.base_model.texts import PARTS, UNMERGED, WRITTEN
from tests.models import CORPUS

BOS, EOS = "<|im_start|>", "<|im_end|>"
# Bytes of control characters and of rare planes that the vocabulary lacks, as SmolLM2's does.
MISSING = (0x04, 0x13, 0xF1)
HIDDEN, HEADS, WIDTH = 64, 4, 16
CONTROL, USER_DEFINED, UNUSED, NORMAL = (
    gguf.TokenType.CONTROL,
    gguf.TokenType.USER_DEFINED,
    gguf.TokenType.UNUSED,
    gguf.TokenType.NORMAL,
)
# Added to the vocabulary: in its beginning, as in SmolLM2, and at its end, as in Qwen. llama.cpp takes `</s>` for a
# control token although the file says that it is none.
FIRST = {"<|endoftext|>": CONTROL, BOS: CONTROL, EOS: CONTROL}
LAST = {
    "[PAD]": UNUSED,
    "<tool_call>": USER_DEFINED,
    "    ": USER_DEFINED,
    "</s>": NORMAL,
    UNMERGED: NORMAL,
    "<|x|>": CONTROL,
}


@cache
def trained_vocabulary() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tokens and merges of a small byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, *WRITTEN, " ".join(PARTS) * 3] * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    absent = [chr(256 + byte) if byte < 0x21 else chr(byte) for byte in MISSING]
    merges = [" ".join(pair) for pair in model["merges"] if not any(letter in "".join(pair) for letter in absent)]
    tokens = [token for token in model["vocab"] if not any(letter in token for letter in absent)]
    return tuple(tokens), tuple(merges)


def write_gguf(
    path: Path,
    pre_tokenizer: str = "smollm",
    architecture: str = "llama",
    *,
    options: Mapping[str, Any] | None = None,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q4_0,
    change: Callable[[gguf.GGUFWriter, dict[str, np.ndarray]], object] = lambda writer, tensors: None,
) -> Path:
    """Write a random model with one layer and a tied head, of 64 values, and return its path.

    Args:
        path: the file.
        pre_tokenizer: llama.cpp's name of it.
        architecture: llama.cpp's name of it.
        options: more keys of the metadata, or other values of them; None leaves a key out.
        quantization: type of the matrices.
        change: called with the writer and the tensors before they are added.
    """
    trained, merges = trained_vocabulary()
    types = {**FIRST, **dict.fromkeys(trained, NORMAL), **LAST}
    tokens = list(types)
    keys = {
        f"{architecture}.context_length": 512,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.block_count": 1,
        f"{architecture}.feed_forward_length": 2 * HIDDEN,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": HEADS // 2,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.rope.dimension_count": WIDTH,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(type) for type in types.values()],
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": tokens.index(BOS),
        "tokenizer.ggml.eos_token_id": tokens.index(EOS),
        "tokenizer.chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
        **(options or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), HIDDEN),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_v": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (2 * HIDDEN, HIDDEN),
        "blk.0.ffn_up": (2 * HIDDEN, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, 2 * HIDDEN),
    }
    tensors = {f"{name}.weight": random.normal(size=shape, scale=0.2) for name, shape in shapes.items()}
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        tensors[f"{name}.weight"] = np.ones(HIDDEN)
    if architecture == "qwen2":
        for name in ("q", "k", "v"):
            tensors[f"blk.0.attn_{name}.bias"] = random.normal(size=len(tensors[f"blk.0.attn_{name}.weight"]))
    change(writer, tensors)
    for name, values in tensors.items():
        plain = np.ascontiguousarray(values, dtype=np.float32)
        type = quantization if plain.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(plain, type), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if value is not None:
        kinds[type(value)](key, value)
