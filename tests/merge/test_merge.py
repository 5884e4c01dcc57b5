"""Real merges of tiny models."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from chatmetrics.components.errors import InputError
from chatmetrics.components.merge.merge import merge, provenance
from chatmetrics.components.merge.settings import MergeSettings
from tests.base_model.changes import LFS, edited
from tests.models import tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_base(tmp_path_factory.mktemp("models") / "base")
    # A format that saving the tokenizer would not preserve.
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"legacy": True, **settings}, indent=7), "utf-8")
    return folder


def write_adapter(base: Path, folder: Path, size: float = 0.05) -> Path:
    """Write an adapter with random weights of a given size, which are the same in every run."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    random = torch.Generator().manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = size * torch.randn(weight.shape, generator=random)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("adapters") / "adapter")


def test_the_merged_weights_are_base_plus_scaled_product(base: Path, adapter: Path, tmp_path: Path) -> None:
    report = merge(MergeSettings(), str(base), adapter, tmp_path / "merged")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    low_rank = load_file(adapter / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in low_rank:
            change = 2 * low_rank[f"{prefix}.lora_B.weight"] @ low_rank[f"{prefix}.lora_A.weight"]
            torch.testing.assert_close(after[name], weight + change, rtol=1e-5, atol=1e-6)
            assert not torch.equal(after[name], weight)
        else:
            assert torch.equal(after[name], weight), name
    assert 0 < report.max_difference < report.tolerance == 1e-3


def test_tokenizer_and_configuration_files_are_byte_identical_to_the_base_s(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    report = merge(MergeSettings(), str(base), adapter, merged)
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "config.json"}
    for name in names:
        assert (merged / name).read_bytes() == (base / name).read_bytes()
    assert (
        set(report.files)
        == names | {"model.safetensors", "prompt_template.txt"}
        == {path.name for path in merged.iterdir()}
    )


def test_the_provenance_of_a_merged_model_is_known(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    with pytest.raises(InputError, match=r"run\.json: no such file"):
        provenance(folder)
    run = {"base_model": "a/b", "base_fingerprint": "12", "dataset_sha256": "34", "steps": 5}
    (folder / "run.json").write_text(json.dumps(run))
    digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert provenance(folder) == {
        "base_model": "a/b",
        "base_fingerprint": "12",
        "dataset_sha256": "34",
        "adapter_sha256": digest,
    }
    (folder / "run.json").write_text(
        json.dumps({**run, "early_stopping": {"by": "accuracy", "questions": ["q1", "q2"]}})
    )
    assert json.loads(provenance(folder)["early_stopping_questions"]) == ["q1", "q2"]


def test_large_models_are_written_in_shards(base: Path, adapter: Path, tmp_path: Path) -> None:
    report = merge(MergeSettings(max_shard_size="300KB"), str(base), adapter, tmp_path / "merged")
    shards = sorted((tmp_path / "merged").glob("model-*-of-*.safetensors"))
    assert len(shards) > 1 and "model.safetensors.index.json" in report.files
    assert sum(len(load_file(shard)) for shard in shards) == len(load_file(base / "model.safetensors"))


def half_base(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    weights = {name: weight.bfloat16() for name, weight in load_file(base / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}), "utf-8")
    return folder


def test_a_bf16_base_stays_bf16_and_is_rounded_once(base: Path, adapter: Path, tmp_path: Path) -> None:
    half = half_base(base, tmp_path / "half")
    report = merge(MergeSettings(), str(half), adapter, tmp_path / "merged")
    before, after = load_file(half / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    low_rank = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    product = low_rank[f"base_model.model.{name}.lora_B.weight"] @ low_rank[f"base_model.model.{name}.lora_A.weight"]
    exact = before[f"{name}.weight"].float() + 2 * product
    # Half a unit in the last place of bf16's 8 bits.
    torch.testing.assert_close(after[f"{name}.weight"].float(), exact, rtol=2**-8, atol=1e-6)
    assert 1e-5 < report.max_difference < report.tolerance == 0.1


@pytest.mark.parametrize(
    ("tolerances", "message"),
    [
        ({"half_tolerance": 1e-7}, "more than merge.half_tolerance of 1e-07"),
        ({"tolerance": 1e-9, "half_tolerance": 1.0}, "more than merge.tolerance of 1e-09"),
    ],
)
def test_a_difference_beyond_a_tolerance_keeps_the_old_folder(
    base: Path, adapter: Path, tmp_path: Path, tolerances: dict[str, float], message: str
) -> None:
    half = half_base(base, tmp_path / "half")
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "precious").touch()
    with pytest.raises(InputError, match=message) as error:
        merge(MergeSettings(**tolerances), str(half), adapter, merged)
    assert str(merged) in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in merged.iterdir()] == ["precious"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "merged"]


@pytest.mark.parametrize("other", [{"hidden": 32}, {"layers": 1}])
def test_an_adapter_of_another_base_is_an_error_in_one_line(
    base: Path, adapter: Path, tmp_path: Path, other: dict[str, int]
) -> None:
    stranger = tiny_base(tmp_path / "stranger", **other)
    with pytest.raises(InputError, match=r"adapter .* does not belong to the base model .*stranger") as error:
        merge(MergeSettings(), str(stranger), adapter, tmp_path / "merged")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", LFS, "adapter_config.json: a git-lfs pointer"),
        ("adapter_config.json", "{}", "adapter_config.json: not LoRA but None"),
        ("adapter_config.json", "[]", "adapter_config.json: not a JSON object but list"),
        ("adapter_config.json", '{"peft_type": "IA3"}', "adapter_config.json: not LoRA but 'IA3'"),
        ("adapter_config.json", '{"peft_type": "LORA", "r": "4"}', "does not belong to the base model"),
        ("adapter_model.safetensors", LFS, "adapter_model.safetensors: a git-lfs pointer"),
        ("adapter_model.safetensors", "", "adapter_model.safetensors: an empty file"),
    ],
)
def test_a_file_that_is_no_adapter_s_is_named(
    name: str, content: str, message: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    (broken / name).write_text(content, "utf-8")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        merge(MergeSettings(), str(base), broken, tmp_path / "merged")
    assert "\n" not in str(caught.value) and str(broken) in str(caught.value)


def test_an_adapter_that_would_save_another_module_is_an_error(base: Path, adapter: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    edited("adapter_config.json", modules_to_save=["lm_head"])(broken)
    with pytest.raises(InputError, match="does not belong to the base model"):
        merge(MergeSettings(), str(base), broken, tmp_path / "merged")


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_weights_that_compute_nothing_are_an_error(value: float, base: Path, adapter: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(base, tmp_path / "base"))
    weights = {name: torch.full_like(it, value) for name, it in load_file(base / "model.safetensors").items()}
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="computes logits that are all zero or not finite; copy or download the base"):
        merge(MergeSettings(), str(broken), adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_damaged_or_missing_adapter_is_an_error_that_names_it(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json: no such file"):
        merge(MergeSettings(), str(base), tmp_path, tmp_path / "merged")
    damaged = Path(shutil.copytree(adapter, tmp_path / "damaged"))
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: damaged"):
        merge(MergeSettings(), str(base), damaged, tmp_path / "merged")
