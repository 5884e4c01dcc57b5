"""Adapters on all kinds of modules: what train accepts can be merged, converted and served, and computes the same."""

import json
from pathlib import Path

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatmetrics.components.base_model.adapter_targets import check_targets
from chatmetrics.components.base_model.check import check_base_model
from chatmetrics.components.convert.convert import convert
from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.errors import InputError
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.merge.merge import merge
from chatmetrics.components.merge.settings import MergeSettings
from chatmetrics.components.train import launch
from chatmetrics.components.train.settings import TrainSettings
from tests.base_model.families import FAMILIES, write_family
from tests.models import tiny_base
from tests.train.conftest import fork_server, quick_launch  # noqa: F401 (fixtures)
from tests.train.small_dataset import write_dataset

TARGETS = [
    ("lm_head",),
    ("embed_tokens",),
    ("lm_head", "embed_tokens"),
    ("q_proj", "lm_head"),
    ("embed_tokens", "up_proj"),
]


def lora(*targets: str) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=list(targets))


def write_adapter(base: Path, folder: Path, *targets: str) -> Path:
    """Write an adapter with random weights as train does."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora(*targets))
    random = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.05 * torch.randn(weight.shape, generator=random)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(5, 45).reshape(1, -1)).logits


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("models") / "untied")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("qwen2", tmp_path_factory.mktemp("models") / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def implicitly_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3, whose config.json need not say that it ties."""
    folder = write_family("gemma3_text", tmp_path_factory.mktemp("models") / "gemma")
    config = json.loads((folder / "config.json").read_bytes())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
@pytest.mark.parametrize("kind", ["untied", "tied", "implicitly_tied"])
def test_a_merged_head_or_embedding_is_base_plus_adapter(
    kind: str, targets: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base: Path = request.getfixturevalue(kind)
    check_targets(base, lora(*targets))
    adapter = write_adapter(base, tmp_path / "adapter", *targets)
    report = merge(MergeSettings(), str(base), adapter, tmp_path / "merged")
    assert report.max_difference < 1e-4
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if kind != "untied":  # PEFT itself would add the change to both
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    expected = logits(PeftModel.from_pretrained(model, adapter).eval())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "merged" / "config.json").read_bytes())
    assert config["tie_word_embeddings"] is False
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    check_base_model(tmp_path / "merged")


def test_a_tied_base_stays_tied_if_neither_head_nor_embedding_is_adapted(tied: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tied, tmp_path / "adapter", "q_proj", "down_proj")
    merge(MergeSettings(), str(tied), adapter, tmp_path / "merged")
    assert (tmp_path / "merged" / "config.json").read_bytes() == (tied / "config.json").read_bytes()
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")


@pytest.mark.parametrize("kind", ["untied", "tied", "implicitly_tied"])
def test_the_served_model_has_the_adapted_head(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base: Path = request.getfixturevalue(kind)
    adapter = write_adapter(base, tmp_path / "adapter", "lm_head", "v_proj")
    merge(MergeSettings(), str(base), adapter, tmp_path / "merged")
    settings = ConvertSettings(quantization="F16", context_length=256)
    report = convert(settings, tmp_path / "merged", tmp_path / "gguf")
    tokenizer = AutoTokenizer.from_pretrained(base)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for prompt in (f"SELECT name FROM hotel WHERE rating > {number}" for number in range(50)):
        with torch.inference_mode():
            expected = torch.log_softmax(merged(**tokenizer(prompt, return_tensors="pt")).logits[0, -1], -1)
        # The server reports no probabilities for a special token, or for a part of a character.
        if expected.argmax() < min(tokenizer.all_special_ids) and tokenizer.decode([expected.argmax()]).isascii():
            break
    body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 20}
    with LlamaServer(report.gguf, context_length=256) as server:
        answer = httpx.post(f"{server.endpoint}/completion", json=body, timeout=60, trust_env=False).json()
    found = {each["id"]: each["logprob"] for each in answer["completion_probabilities"][0]["top_logprobs"]}
    assert set(found) == set(expected.topk(20).indices.tolist())
    for token, value in found.items():
        assert value == pytest.approx(expected[token].item(), abs=0.02)


REFUSED = {
    ("q_porj",): "'q_porj' names no module; did you mean q_proj",
    ("q_proj", "v_prj"): "'v_prj' names no module; did you mean v_proj",
    ("lm_heads",): "did you mean lm_head",
    ("embed_token",): "did you mean embed_tokens",
    ("query_key_value",): "The modules of Qwen2ForCausalLM that can have an adapter are down_proj, embed_tokens",
    ("nothing",): "'nothing' names no module; The modules|'nothing' names no module; ",
    ("q_proj", "input_layernorm"): "'input_layernorm' is a Qwen2RMSNorm, which cannot have an adapter",
    ("mlp",): "'mlp' is a Qwen2MLP, which cannot have an adapter",
    ("all-linear",): "'all-linear' names no module",
    ("",): "'' names no module",
    (): "lora_targets is empty; write all-linear",
}


@pytest.mark.parametrize("targets", REFUSED, ids="+".join)
def test_train_refuses_at_its_start_what_cannot_be_adapted(
    targets: tuple[str, ...], untied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "subprocess", None)  # nothing is started
    dataset, output = write_dataset(tmp_path / "dataset"), tmp_path / "output"
    settings = TrainSettings(lora_targets=targets)
    with pytest.raises(InputError, match=REFUSED[targets]) as caught:
        launch.train(settings, dataset, str(untied), output / "adapter", output / "checkpoints")
    assert "\n" not in str(caught.value)
    assert not output.exists()


@pytest.mark.parametrize("family", ["gemma2", "cohere"])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_head_that_llama_cpp_does_not_have_is_refused(family: str, target: str, tmp_path: Path) -> None:
    base = write_family(family, tmp_path / "base")
    with pytest.raises(InputError, match=r"llama\.cpp has no separate head"):
        check_targets(base, lora(target))
    check_targets(base, lora("q_proj"))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_accepted_for_every_family(family: str, tmp_path: Path) -> None:
    base = write_family(family, tmp_path / "base")
    check_targets(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.usefixtures("quick_launch")
def test_a_trained_head_and_embedding_are_merged(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base: Path = request.getfixturevalue(kind)
    settings = TrainSettings(
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        lora_targets=("lm_head", "embed_tokens", "q_proj"),
    )
    dataset = write_dataset(tmp_path / "dataset")
    launch.train(settings, dataset, str(base), tmp_path / "adapter", tmp_path / "checkpoints")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("lm_head.lora_B" in name for name in names) and not any("base_layer" in name for name in names)
    report = merge(MergeSettings(), str(base), tmp_path / "adapter", tmp_path / "merged")
    assert report.max_difference < 1e-4
