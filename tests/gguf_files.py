"""GGUF files for tests, written directly: models of less than 1 MB that llama.cpp runs in well under a second."""

from itertools import pairwise
from pathlib import Path

import numpy as np

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SPECIAL_TOKENS = [EOS, USER, ASSISTANT, BOS]
CHATML_TOKENS = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]
MERGES = ["S E", "SE L", "Ġ h"]
# Differs from DeepSeek's template and adds <think>, so that a test sees whether a server applies it.
FOREIGN_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>{% endif %}"
)
NORMAL, CONTROL = 1, 3


def tiny_gguf(folder: Path, hidden: int = 64, context: int = 4096, seed: int = 0) -> Path:
    """Write `folder`/tiny.gguf: a random Qwen2 whose answers depend on the whole prompt and are printable ASCII."""
    tokens = _vocabulary([])
    random = np.random.default_rng(seed)
    embeddings = random.normal(size=(len(tokens), hidden))
    head = random.normal(size=(len(tokens), hidden))
    printable = [len(token) == 1 and token.isascii() for token in tokens]
    head[~np.array(printable)] = 0.0  # a zero logit never wins
    return _write(folder / "tiny.gguf", tokens, embeddings, head, random, mixing=0.3, context=context)


def answering_gguf(
    folder: Path,
    answer: list[str],
    context: int = 4096,
    endless: bool = False,
    or_else: str = "",
    after: str = ASSISTANT,
    chatml: bool = False,
) -> Path:
    """Write `folder`/answering.gguf: a Qwen2 that answers every prompt with `answer` and then EOS.

    The model maps each token to the next one, with one dimension per token. Each piece of `answer` becomes a token and
    must differ from the others; a leading space is part of a piece.

    Args:
        folder: folder of the file.
        answer: the pieces of the answer.
        context: the model's context length.
        endless: repeat the last piece instead of ending with EOS.
        or_else: an alternative to the last piece that is nearly as likely: it occurs in sampled answers, but never in
            the greedy one.
        after: the token that the answer follows.
        chatml: give it Qwen's special tokens instead of DeepSeek's, an answer that ends with `<|im_end|>`, and no BOS.
    """
    special = CHATML_TOKENS if chatml else SPECIAL_TOKENS
    pieces = [_byte_level(piece) for piece in answer]
    other = _byte_level(or_else)
    tokens = _vocabulary([*pieces, *filter(None, [other])], special)
    start = "\n" if chatml else after
    chain = [start if start in special else _byte_level(start), *pieces, pieces[-1] if endless else special[0]]
    head = np.zeros((len(tokens), _padded(len(tokens))))
    for current, following in pairwise(chain):
        head[tokens.index(following), tokens.index(current)] = 1.0
    if other:
        head[tokens.index(other), tokens.index(chain[-3])] = 0.98
        head[tokens.index(chain[-1]), tokens.index(other)] = 1.0
    embeddings = np.eye(len(tokens), head.shape[1])
    random = np.random.default_rng(0)
    return _write(
        folder / "answering.gguf", tokens, embeddings, head, random, mixing=0.0, context=context, special=special
    )


def _write(
    path: Path,
    tokens: list[str],
    embeddings: np.ndarray,
    head: np.ndarray,
    random: np.random.Generator,
    mixing: float,
    context: int,
    special: list[str] = SPECIAL_TOKENS,
) -> Path:
    """Write a Qwen2 with one layer and 4 heads. `mixing` scales the layer's output; 0 passes tokens through."""
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = embeddings.shape[1]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    _add_tokenizer(writer, tokens, special)
    tensors = {"token_embd": embeddings, "output": head, "output_norm": np.ones(hidden)}
    tensors |= {"blk.0.attn_norm": np.ones(hidden), "blk.0.ffn_norm": np.ones(hidden)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        scale = mixing if name in ("attn_output", "ffn_down") else 1.0
        tensors[f"blk.0.{name}"] = random.normal(size=(hidden, hidden)) * scale / np.sqrt(hidden) * 3
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.astype(np.float32))
    for name in ("attn_q", "attn_k", "attn_v"):
        writer.add_tensor(f"blk.0.{name}.bias", np.zeros(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: object, tokens: list[str], special: list[str]) -> None:
    import gguf

    assert isinstance(writer, gguf.GGUFWriter)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-r1-qwen")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(tokens.index(special[0]))
    writer.add_add_bos_token(BOS in special)
    if BOS in special:
        writer.add_bos_token_id(tokens.index(BOS))
    writer.add_chat_template(FOREIGN_CHAT_TEMPLATE)


def _vocabulary(pieces: list[str], special: list[str] = SPECIAL_TOKENS) -> list[str]:
    alphabet = [_byte_level(bytes([byte])) for byte in range(256)]
    merged = [merge.replace(" ", "") for merge in MERGES]
    return list(dict.fromkeys([*alphabet, *merged, *pieces, *special]))


def _byte_level(text: str | bytes) -> str:
    """The text in GPT-2's printable stand-ins for bytes, which byte-level vocabularies use."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    stand_in = {byte: chr(byte) for byte in visible} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    return "".join(stand_in[byte] for byte in (text.encode() if isinstance(text, str) else text))


def _padded(size: int) -> int:
    return -(-size // 64) * 64
