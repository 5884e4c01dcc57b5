"""Trees of examples compared with the forward pass of many families' own classes, on each example alone."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.data.trees import TokenizedExample, tree_pack
from chatmetrics.components.train.model import answer_loss
from chatmetrics.components.train.model.answer_loss import give_answer_loss, own_forward, tree_mask
from chatmetrics.components.train.model.base import add_adapter, load_model
from chatmetrics.components.train.model.device import DeviceSettings
from chatmetrics.components.train.model.saved_activations import original_layers
from chatmetrics.components.train.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = 24
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": WINDOW}
ALTERNATING = {**SLIDING, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 4,
}
DEEPSEEK = {**LATENT, **EXPERTS, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
ATTENTION = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Family:
    """A model type, the sizes it needs, what it supports, and whether padded batches are exact."""

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    attention: str = "sdpa"
    targets: Any = "all-linear"
    padded: bool = True


EXACT = {
    "Llama": Family("llama"),
    "Qwen2": Family("qwen2"),
    "Qwen2, sliding windows": Family("qwen2", {**SLIDING, "use_sliding_window": True, "max_window_layers": 2}),
    "Qwen3": Family("qwen3"),
    "Qwen3 MoE": Family("qwen3_moe", EXPERTS),
    "Qwen2 MoE": Family("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 16}),
    "Gemma": Family("gemma"),
    "Gemma 2": Family("gemma2", {**ALTERNATING, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}, "eager"),
    "Gemma 3": Family("gemma3_text", {**ALTERNATING, "query_pre_attn_scalar": 8}),
    "Mistral": Family("mistral", SLIDING),
    "Mistral, no window": Family("mistral", {"sliding_window": None}),
    "Mixtral": Family("mixtral", {**SLIDING, **EXPERTS}),
    "Ministral": Family("ministral", ALTERNATING),
    "Ministral 3": Family("ministral3", SLIDING),
    "Phi": Family("phi"),
    "Phi-3": Family("phi3", SLIDING),
    "Granite": Family(
        "granite",
        {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    ),
    "Granite MoE": Family("granitemoe", {**EXPERTS, "logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "Cohere": Family("cohere", {"logit_scale": 0.3}),
    "Cohere 2": Family("cohere2", {**ALTERNATING, "logit_scale": 0.3}),
    "SmolLM3": Family("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
    "SmolLM3, sliding windows": Family("smollm3", {**ALTERNATING, "use_sliding_window": True}),
    "DeepSeek-V2": Family("deepseek_v2", DEEPSEEK),
    "DeepSeek-V3": Family("deepseek_v3", DEEPSEEK),
    "OLMo": Family("olmo"),
    "OLMo 2": Family("olmo2"),
    "OLMo 3": Family("olmo3", ALTERNATING),
    "OLMoE": Family("olmoe", EXPERTS),
    "GLM": Family("glm"),
    "GLM-4": Family("glm4"),
    "GLM-4 MoE": Family("glm4_moe", DEEPSEEK),
    "InternLM 3": Family("internlm3"),
    "StableLM": Family("stablelm"),
    "GPT-2": Family("gpt2"),
    "GPT-NeoX": Family("gpt_neox"),
    "GPT BigCode": Family("gpt_bigcode"),
    "StarCoder2": Family("starcoder2", SLIDING),
    "OPT": Family("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt-oss": Family("gpt_oss", {**ALTERNATING, **EXPERTS}, "eager"),
    "ERNIE 4.5": Family("ernie4_5"),
    "Hunyuan": Family("hunyuan_v1_dense"),
    "EXAONE 4": Family("exaone4", {**ALTERNATING, "sliding_window_pattern": 2}),
    "Seed-OSS": Family("seed_oss"),
    "Gemma 3n": Family(
        "gemma3n_text",
        {
            **ALTERNATING,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 300,
            "num_kv_shared_layers": 0,
            "laurel_rank": 4,
        },
    ),
    "Gemma 4": Family(
        "gemma4_text",
        {
            **ALTERNATING,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 300,
            "num_kv_shared_layers": 0,
            "global_head_dim": 8,
        },
    ),
    "ERNIE 4.5 MoE": Family(
        "ernie4_5_moe",
        {**EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    ),
    "Phi-3.5 MoE": Family("phimoe", EXPERTS, targets=ATTENTION),
    "dots.1": Family("dots1", {**DEEPSEEK, **ALTERNATING, "n_shared_experts": 1}),
    "Hunyuan MoE": Family("hunyuan_v1_moe", {**EXPERTS, "moe_topk": 2}),
    "MiniMax": Family("minimax", {**EXPERTS, "layer_types": ["full_attention"] * 4}),
    "Diff Llama": Family("diffllama"),
    "VaultGemma": Family("vaultgemma", {**ALTERNATING, "query_pre_attn_scalar": 8}, "eager"),
    "nanochat": Family("nanochat"),
    "Arcee": Family("arcee"),
    "CWM": Family("cwm", ALTERNATING),
    "AFMoE": Family("afmoe", {**EXPERTS, **ALTERNATING, "num_dense_layers": 1}),
    "FlexOlmo": Family("flex_olmo", EXPERTS),
    "JetMoe": Family("jetmoe", {**EXPERTS, "kv_channels": 8}),
    "MiniCPM3": Family("minicpm3", LATENT),
    "Llama 4": Family(
        "llama4_text", {**EXPERTS, "attention_chunk_size": WINDOW, "intermediate_size_mlp": 48}, targets=ATTENTION
    ),
    "BitNet": Family("bitnet", {"hidden_act": "silu"}),
    "Nemotron": Family("nemotron"),
    "Apertus": Family("apertus"),
    "Helium": Family("helium"),
    "Falcon": Family("falcon", {"head_dim": ...}),
}
REFUSED = {
    "DeepSeek-V4": Family(
        "deepseek_v4",
        {
            **EXPERTS,
            "n_routed_experts": 4,
            "q_lora_rank": 16,
            "sliding_window": WINDOW,
            "o_groups": 2,
            "o_lora_rank": 8,
            "hc_mult": 2,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_topk": 8,
            "num_key_value_heads": 1,
            "swiglu_limit": 1.0,
        },
        "eager",
        targets=("gate_proj", "up_proj", "down_proj"),
        padded=False,
    ),
    "DeepSeek-V3.2": Family(
        "deepseek_v32", {**DEEPSEEK, "index_topk": 8, "index_n_heads": 2, "index_head_dim": 8}, padded=False
    ),
    "Falcon-H1": Family(
        "falcon_h1",
        {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mlp_multipliers": [0.7, 0.5],
            "lm_head_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "key_multiplier": 0.5,
        },
        targets=ATTENTION,
    ),
    "Jamba": Family(
        "jamba",
        {**EXPERTS, "mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
        targets=ATTENTION,
    ),
    "LFM2": Family("lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    "Mamba": Family("mamba", {"state_size": 4}, "eager", targets=("in_proj",)),
    "Granite hybrid": Family(
        "granitemoehybrid",
        {
            **EXPERTS,
            "shared_intermediate_size": 16,
            "layer_types": ["mamba", "attention"] * 2,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 4,
        },
        targets=ATTENTION,
    ),
    "Qwen3-Next": Family("qwen3_next", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16}, targets=ATTENTION),
    "Qwen3.5": Family("qwen3_5_text", LINEAR, targets=ATTENTION),
    "MPT": Family("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 512}, "eager"),
    "BLOOM": Family("bloom", {"n_head": 4}, "eager"),
}


def model_of(family: Family) -> PreTrainedModel:
    """A random model whose weights are large enough for every factor, window and limit of its config to show."""
    sizes = {name: value for name, value in {**SIZES, **family.config}.items() if value is not ...}
    config = AutoConfig.for_model(family.kind, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=family.attention).eval()
    for weight in model.parameters():
        weight.data = 0.2 * torch.randn(weight.shape) if weight.ndim > 1 else weight + 0.1 * torch.randn(weight.shape)
    give_answer_loss(model)
    return model


def examples() -> list[TokenizedExample]:
    random = np.random.default_rng(0)
    schema, shared = (random.integers(3, 300, size=size) for size in (40, 9))
    parts = [[schema, shared], [schema, shared], [schema], [schema[:20]]]
    texts = [np.concatenate([*part, random.integers(3, 300, size=20 + 6 * n)]) for n, part in enumerate(parts)]
    return [TokenizedExample(text.astype(np.int32), len(text) - 12) for text in texts]


def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", EXACT)
def test_trees_have_the_losses_and_gradients_of_the_models_own_forward(name: str) -> None:
    model = model_of(EXACT[name])
    adapted = add_adapter(model, TrainSettings(lora_rank=2, lora_targets=EXACT[name].targets))
    for parameter, weight in adapted.named_parameters():
        if "lora_B" in parameter:
            torch.nn.init.normal_(weight, std=0.1)
    model.get_input_embeddings().weight.requires_grad_()
    own_losses = []
    with own_forward(model), original_layers(adapted):
        for example in examples():
            ids = torch.from_numpy(example.ids.astype(np.int64))[None]
            labels = ids.clone()
            labels[:, : example.prompt_length] = -100
            output = adapted(input_ids=ids, labels=labels, use_cache=False)
            (output.loss * 12).backward()
            answers = output.logits[0, example.prompt_length - 1 : -1]
            own_losses.append(cross_entropy(answers, ids[0, example.prompt_length :], reduction="none"))
    own_gradients = gradients(adapted)
    losses = adapted(**tree_pack(examples()))
    losses.sum().backward()
    torch.testing.assert_close(losses, torch.cat(own_losses), rtol=1e-4, atol=1e-4)
    assert losses.std() > 0.1
    for parameter, gradient in gradients(adapted).items():
        assert (gradient - own_gradients[parameter]).norm() <= 1e-3 * gradient.norm() + 1e-5, parameter


@pytest.mark.parametrize("name", REFUSED)
def test_families_that_cannot_be_trained_on_trees_are_refused(name: str) -> None:
    model = model_of(REFUSED[name])
    with pytest.raises(InputError, match=r"cannot be trained on trees .* set train\.packing to false"):
        add_adapter(model, TrainSettings(lora_rank=2, lora_targets=REFUSED[name].targets))
    if REFUSED[name].padded:
        padded = TrainSettings(lora_rank=2, lora_targets=REFUSED[name].targets, packing=False)
        add_adapter(model_of(REFUSED[name]), padded)


def without_windows(*arguments: Any) -> torch.Tensor:
    return tree_mask(*arguments[:3])


def without_scaling(model: PreTrainedModel, hidden: torch.Tensor, *_: Any) -> torch.Tensor:
    logits: torch.Tensor = model.get_output_embeddings()(hidden)
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name, config, replaced",
    [
        ("Mistral", {}, {"tree_mask": without_windows}),
        ("Mistral", {"sliding_window": 4096}, {"tree_mask": without_windows}),
        ("Gemma 3", {"sliding_window": 200}, {"tree_mask": without_windows}),
        ("Granite", {}, {"_own_logits": without_scaling}),
        ("Cohere", {}, {"_own_logits": without_scaling}),
    ],
)
def test_a_computation_that_is_not_the_models_own_is_refused(
    name: str,
    config: dict[str, Any],
    replaced: dict[str, Any],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for function, replacement in replaced.items():
        monkeypatch.setattr(answer_loss, function, replacement)
    model = model_of(replace(EXACT[name], config=EXACT[name].config | config)).to(dtype)
    with pytest.raises(InputError, match=r"the loss of a token differs by .* from the model's own"):
        add_adapter(model, TrainSettings(lora_rank=2))
    assert (
        model.config.sliding_window == config.get("sliding_window", WINDOW) if name in ("Mistral", "Gemma 3") else True
    )


@pytest.mark.parametrize("name", ["Gemma 2", "gpt-oss"])
def test_an_attention_that_the_class_does_not_support_is_replaced(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model_of(EXACT[name]).save_pretrained(tmp_path)
    model = load_model(tmp_path, TrainSettings(), DeviceSettings(has_gpu=False, precision="fp32", attention="sdpa"))
    assert model.config._attn_implementation == "eager"
    assert f"{type(model).__name__} does not support sdpa attention" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_batch_are_refused(kind: str) -> None:
    factors = {"long_factor": [4.0] * 4, "short_factor": [1.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 400, **factors}
    limits = {"max_position_embeddings": 400, "original_max_position_embeddings": 400}
    family = Family("phi3" if kind == "longrope" else "llama", {"rope_parameters": rope, **limits})
    with pytest.raises(InputError, match=r"set train\.cutoff_length to at most 400, or train\.packing to false"):
        add_adapter(model_of(family), TrainSettings(lora_rank=2))
    add_adapter(model_of(family), TrainSettings(lora_rank=2, cutoff_length=400))
    add_adapter(model_of(family), TrainSettings(lora_rank=2, packing=False, batch_size=1))


def test_the_documentation_lists_these_families() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    section = page.split("## Model families")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    equal, refused = (" ".join(line for line in table if kind in line) for kind in ("| equal", "refused"))
    words = {"ERNIE 4.5 MoE": "ERNIE 4.5 and its MoE", "Hunyuan MoE": "Hunyuan and its MoE"}
    words |= {"Gemma 3n": "Gemma 3 and 3n", "Gemma 4": "Gemma 3 and 3n and 4"}
    assert not [name for name in EXACT if words.get(name, name.split(",")[0]) not in equal]
    assert not [name for name in REFUSED if name not in refused]
