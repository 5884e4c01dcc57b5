"""Tiny random models of the architectures that people fine-tune, with the tokenizer of tests/models.py."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models import BOS, EOS, PAD, tiny_base

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
# model_type, and what its config has besides SMALL.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "llama": {},
    "gemma": {"head_dim": 16},
    # llama.cpp scales attention by the width of a head.
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "mistral": {},
    "phi3": {},
    "granite": {},
    "cohere": {},
    "cohere2": {},
    "deepseek_v3": DEEPSEEK,
    "smollm3": {},
    "olmo2": {},
    "glm4": {"head_dim": 16},
    "mixtral": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**EXPERTS, "head_dim": 16},
    "granitemoe": EXPERTS,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {"rotary_pct": 0.25},
    "starcoder2": {},
    "stablelm": {},
    "phi": {},
}


def write_family(name: str, folder: Path, max_shard_size: str = "5GB", **changes: Any) -> Path:
    """Write a random model of a family into `folder` and return the folder."""
    tiny_base(folder)
    rows = 400
    own = {} if name == "gpt2" else SMALL
    ids = _special_ids(folder)
    config = AutoConfig.for_model(
        name,
        **{
            **own,
            **FAMILIES[name],
            "vocab_size": rows,
            "bos_token_id": ids[BOS],
            "eos_token_id": ids[EOS],
            "pad_token_id": ids[PAD],
            **changes,
        },
    )
    (folder / "model.safetensors").unlink()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def _special_ids(folder: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return {token: tokenizer.token_to_id(token) for token in (BOS, EOS, PAD)}
