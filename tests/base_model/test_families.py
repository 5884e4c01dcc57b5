"""Good models of many families pass the check, and none of their tensors may be missing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatmetrics.components.base_model.check import check_base_model
from chatmetrics.components.base_model.llama_cpp import ALWAYS_TIED, PINNED, converter_path, known_architectures
from chatmetrics.components.base_model.on_meta import check_weights
from chatmetrics.components.base_model.tensors import read_tensors
from chatmetrics.components.errors import InputError
from tests.base_model.changes import added_token, edited, extended, removed, tensors, without, written
from tests.base_model.families import FAMILIES, write_family
from tests.models import EOS, tiny_base


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_shard_size", ["5GB", "50KB"])
def test_a_good_model_passes(
    family: str, max_shard_size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_family(family, tmp_path / "base", max_shard_size)
    capsys.readouterr()
    checked = check_base_model(folder)
    assert checked.compared
    files = len({tensor.file for tensor in checked.tensors.values()})
    assert (files > 1) == (max_shard_size == "50KB")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3_text", "phi3", "deepseek_v3", "mixtral", "gpt2"])
def test_every_tensor_of_a_family_is_needed(family: str, tmp_path: Path) -> None:
    folder = write_family(family, tmp_path / "base")
    found, config = read_tensors(folder), json.loads((folder / "config.json").read_bytes())
    for name in found:
        with pytest.raises(InputError):
            check_weights(folder, config, {key: tensor for key, tensor in found.items() if key != name})


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_a_missing_expert_is_named(family: str, tmp_path: Path) -> None:
    folder = write_family(family, tmp_path / "base")
    name = next(name for name in read_tensors(folder) if "layers.1." in name and ".experts.2." in name)
    without(name)(folder)
    with pytest.raises(InputError, match=f"lacks {name}, which the other experts have"):
        check_base_model(folder)


def only_the_head(folder: Path) -> None:
    without("embed_tokens")(folder)
    edited("config.json", tie_word_embeddings=True)(folder)


def half(dtype: torch.dtype) -> Callable[[Path], object]:
    return tensors(lambda all: {name: it.to(dtype) for name, it in all.items()})


HARMLESS: dict[str, tuple[Callable[[Path], object], str]] = {
    "rotary frequencies": (
        extended(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8)),
        "1 tensors belong to no part of the model and are ignored: model.layers.0.self_attn.rotary_emb.inv_freq",
    ),
    "a reward head": (
        extended(v_head__weight=torch.ones(1, 64)),
        "1 tensors belong to no part of the model and are ignored: v_head.weight",
    ),
    "no pad token, as Llama 3.1": (
        lambda folder: (
            edited("tokenizer_config.json", pad_token=None)(folder),
            edited("config.json", pad_token_id=None)(folder),
        ),
        "",
    ),
    "a pad token of the tokenizer's class": (edited("tokenizer_config.json", pad_token=None, unk_token=None), ""),
    "a pad token that is EOS": (edited("tokenizer_config.json", pad_token=EOS), ""),
    "a tied head": (
        lambda folder: (without("lm_head")(folder), edited("config.json", tie_word_embeddings=True)(folder)),
        "",
    ),
    "a tied head in both places": (edited("config.json", tie_word_embeddings=True), ""),
    "a tied head without embedding": (only_the_head, ""),
    "no generation config": (removed("generation_config.json"), ""),
    "several EOS tokens": (edited("generation_config.json", eos_token_id=[1, 2]), ""),
    "bf16": (half(torch.bfloat16), ""),
    "fp16": (half(torch.float16), ""),
    "remote code of a known type": (
        edited("config.json", auto_map={"AutoModelForCausalLM": "modeling_qwen2.Qwen2ForCausalLM"}),
        "",
    ),
    "a special token without row of a SentencePiece model": (
        lambda folder: (added_token(400)(folder), written("tokenizer.model", b"\n\x0e\n\x05<unk>")(folder)),
        "",
    ),
    "other files": (written("README.md", "<h1>A model</h1>"), ""),
    "weights of another program too": (written("pytorch_model.bin", b"PK"), ""),
    "a GGUF file too": (written("model.gguf", b"GGUF"), ""),
    "a link to the weights": (
        lambda folder: (
            shutil.move(folder / "model.safetensors", folder.with_name("blob")),
            (folder / "model.safetensors").symlink_to("../blob"),
        ),
        "",
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_passes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, note = HARMLESS[name]
    folder = tiny_base(tmp_path / "base")
    capsys.readouterr()
    change(folder)
    check_base_model(folder)
    printed = capsys.readouterr().err
    if "SentencePiece" in name:
        assert printed.endswith("tokenizer.json: the model has no row for [PAD]; it must not occur in texts\n")
    else:
        assert printed == (f"note: {folder}: {note}\n" if note else "")


def test_rows_without_a_token_are_harmless(tmp_path: Path) -> None:
    folder = tiny_base(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    more = {name: torch.cat([it, it[:56]]) if it.shape[0] == 400 else it for name, it in weights.items()}
    save_file(more, folder / "model.safetensors", {"format": "pt"})
    edited("config.json", vocab_size=456)(folder)
    assert check_base_model(folder).tokens == 400
    # A pad token that only tokenizer_config.json has gets the first of these rows.
    edited("tokenizer_config.json", pad_token="[NEW]")(folder)
    check_base_model(folder)


def test_the_list_of_architectures_is_the_pinned_converter_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_CONVERT", raising=False)
    assert converter_path().is_file()
    assert known_architectures() == PINNED
    assert ALWAYS_TIED < PINNED


def test_another_converter_s_architectures_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conversion").mkdir()
    source = 'TEXT_MODEL_MAP: dict[str, str] = {"FooForCausalLM": "foo"}\n'
    (tmp_path / "conversion" / "__init__.py").write_text(source)
    monkeypatch.setenv("LLAMA_CPP_CONVERT", str(tmp_path / "convert_hf_to_gguf.py"))
    assert known_architectures() == {"FooForCausalLM"}


def test_without_torch_the_rest_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    folder = tiny_base(tmp_path / "base")
    assert not check_base_model(folder).compared
    assert "not compared, because torch is not installed" in capsys.readouterr().err
    without("layers.1.")(folder)
    with pytest.raises(InputError, match="lacks layer 1 of the 2 layers"):
        check_base_model(folder)
