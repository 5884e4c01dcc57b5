"""GGUF files as base models: what their folders contain, that every step accepts them, and what is refused."""

import json
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from chatmetrics.components.base_model.check import check_base_model
from chatmetrics.components.base_model.from_gguf import folder as gguf_folders
from chatmetrics.components.base_model.from_gguf.pre_tokenizers import PRE_TOKENIZERS
from chatmetrics.components.base_model.references import (
    as_folder,
    fingerprint,
    gguf_file,
    is_gguf,
    local_model,
    local_tokenizer,
)
from chatmetrics.components.convert.convert import convert
from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.merge.merge import merge
from chatmetrics.components.merge.settings import MergeSettings
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.storage.store import open_store
from chatmetrics.components.train import launch
from chatmetrics.components.train.data.tokenization import load_tokenizer
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.pipelines.cli.main import main
from tests.base_model.converter import converted
from tests.base_model.gguf_bases import BOS, EOS, write_gguf
from tests.models import tiny_base
from tests.train.small_dataset import write_dataset

Q = gguf.GGMLQuantizationType


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gguf_folders.note_rounding.cache_clear()
    return tmp_path / "cache" / "chatmetrics"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


# Configurations that differ in what the file stores, and keys of their config.json.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 400,
}
CONFIGS: dict[str, tuple[type[PreTrainedModel], Callable[[], Any]]] = {
    "tied llama3": (
        LlamaForCausalLM,
        lambda: LlamaConfig(**SHAPE, num_key_value_heads=2, rope_parameters=LLAMA3, tie_word_embeddings=True),
    ),
    "untied, wide heads, biases": (
        LlamaForCausalLM,
        lambda: LlamaConfig(
            **SHAPE,
            num_key_value_heads=4,
            head_dim=32,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0},
            rms_norm_eps=1e-5,
        ),
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        lambda: Qwen2Config(
            **SHAPE,
            num_key_value_heads=2,
            rope_parameters={
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 1024,
                "rope_theta": 1e6,
            },
        ),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_survives_the_way_to_gguf_and_back(name: str, tmp_path: Path) -> None:
    kind, config = CONFIGS[name]
    original = tiny_base(tmp_path / "base")
    torch.manual_seed(0)
    model = kind(config())
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model.config.bos_token_id, model.config.eos_token_id = read(original / "config.json")["bos_token_id"], 2
    (original / "model.safetensors").unlink()
    model.save_pretrained(original)

    folder = local_model(str(converted(original, tmp_path / "base.gguf")))
    assert check_base_model(folder).tokens == check_base_model(original).tokens
    expected, found = load_file(original / "model.safetensors"), load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)

    again = kind.from_pretrained(folder).eval()
    ids = torch.arange(40, 90)[None]
    with torch.inference_mode():
        assert torch.equal(again(input_ids=ids).logits, kind.from_pretrained(original).eval()(input_ids=ids).logits)
    for key in ("rope_parameters", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "vocab_size"):
        assert getattr(again.config, key) == getattr(model.config, key), key


@pytest.mark.parametrize(
    ("type", "dtype", "tolerance"),
    [
        (Q.F32, torch.float32, 0.0),
        (Q.F16, torch.float16, 0.0),
        (Q.BF16, torch.bfloat16, 0.0),
        *((type, torch.bfloat16, 2**-8) for type in (Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0)),
    ],
)
def test_weights_are_those_of_the_file(type: Q, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf", quantization=type)
    folder = local_model(str(path))
    found = load_file(folder / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    tensor = next(it for it in gguf.GGUFReader(path).tensors if it.name == "blk.0.ffn_down.weight")
    expected = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, type), dtype=np.float32))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=0.0)
    assert read(folder / "config.json")["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_a_large_tensor_is_dequantized_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "base.gguf")
    whole = (local_model(str(path)) / "model.safetensors").read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr("chatmetrics.components.base_model.from_gguf.weights.ELEMENTS_PER_CHUNK", 200)
    assert (local_model(str(path)) / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("architecture", "pre_tokenizer"),
    [*(("llama", name) for name in PRE_TOKENIZERS), ("qwen2", "qwen2"), ("qwen2", "deepseek-r1-qwen")],
)
def test_the_folder_is_a_base_model_and_transformers_reads_the_same_tokens(
    architecture: str, pre_tokenizer: str, tmp_path: Path
) -> None:
    options = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.eot_token_id": 0}
    folder = local_model(str(write_gguf(tmp_path / "base.gguf", pre_tokenizer, architecture, options=options)))
    assert "llama.cpp can convert it" in str(check_base_model(folder))
    text = f"{BOS}user\nCOUNT(*) 2024年 ０１２ ½\n  x{EOS}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert tokenizer(text).input_ids == ids and ids[:2] == [1, 1] and ids[-1] == 2
    assert load_tokenizer(folder)(text).input_ids == ids
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"
    assert read(folder / "generation_config.json") == {"bos_token_id": 1, "eos_token_id": [2, 0]}


def test_a_note_names_the_rounding_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(tmp_path / "base.gguf", quantization=Q.Q4_1)
    local_model(str(path))
    local_model(path.as_uri())
    local_model(str(path))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and all("rounded to 4 bits (Q4_1) before" in note for note in notes)
    assert str(path) in notes[0] and path.as_uri() in notes[1]

    local_model(str(write_gguf(tmp_path / "f16.gguf", quantization=Q.F16)))
    assert "rounded" not in capsys.readouterr().err


def test_the_folder_is_made_once_and_named_by_the_content(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf")
    folder = local_model(str(path))
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    moved = path.rename(tmp_path / "Other.GGUF")
    assert local_model(str(moved)) == local_tokenizer(moved.as_uri()) == Path(as_folder(str(moved))) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert sha256_of(moved) in folder.name and folder.parent == cache / "gguf"

    before = fingerprint(str(moved))
    assert sha256_of(moved) in before
    write_gguf(moved, quantization=Q.Q8_0)
    assert fingerprint(str(moved)) != before and local_model(str(moved)) != folder


def test_two_processes_make_one_folder(tmp_path: Path) -> None:
    path = str(write_gguf(tmp_path / "base.gguf"))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(local_model(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert [entry.name for entry in found[0].parent.iterdir() if not entry.name.startswith(".")] == [found[0].name]


def test_a_file_in_a_bucket_is_fetched(bucket: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf")
    open_store(f"s3://{bucket}/models").put_file(path, "base.gguf")
    reference = f"s3://{bucket}/models/base.gguf"
    assert local_model(reference) == local_model(str(path))
    assert fingerprint(reference) == fingerprint(str(path))
    assert gguf_file(reference).read_bytes() == path.read_bytes() and gguf_file(path.as_uri()) == path


def test_only_files_and_packages_are_gguf(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    assert [is_gguf(it) for it in ("a/b.gguf", "s3://b/c.GGUF", "file:///c.gguf", "pypi:a==1")] == [True] * 4
    names = ("org/model", "s3://bucket/prefix", str(tmp_path), str(tmp_path / "folder.gguf"), "")
    assert not any(is_gguf(it) for it in names)


@pytest.mark.exhaustive
def test_every_step_takes_a_gguf_file_as_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_QUANTIZE", raising=False)
    base = str(write_gguf(tmp_path / "base.gguf", quantization=Q.Q8_0))
    settings = TrainSettings(lora_rank=4, epochs=1, max_steps=2, batch_size=2, gradient_accumulation=1)
    launch.train(settings, write_dataset(tmp_path / "data"), base, tmp_path / "adapter", tmp_path / "checks")
    run = read(tmp_path / "adapter" / "run.json")
    assert (run["base_model"], run["base_fingerprint"]) == (base, fingerprint(base))
    merge(MergeSettings(), base, tmp_path / "adapter", tmp_path / "merged")
    own = (local_model(base) / "tokenizer.json").read_bytes()
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == own

    report = convert(ConvertSettings(quantization="Q8_0", context_length=512), tmp_path / "merged", tmp_path / "gguf")
    assert gguf.GGUFReader(report.gguf).fields["tokenizer.ggml.pre"].contents() == "smollm"
    settings_of_convert = ["--set", "convert.context_length=512", "--set", "convert.base_template=plain"]
    for arguments in (
        ["convert", base, "-o", str(tmp_path / "base"), *settings_of_convert],
        ["doctor", "--base-model", base],
    ):
        monkeypatch.setattr(sys, "argv", ["chatmetrics", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    output = capsys.readouterr()
    assert "ok       base model: LlamaForCausalLM" in output.out
    assert "weights had been rounded to 8 bits (Q8_0)" in output.err


def truncated(part: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * part)])

    return change


def with_count(offset: int, value: int) -> Callable[[Path], None]:
    """Write another number of tensors (offset 8) or keys (16)."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[offset : offset + 8] = struct.pack("<Q", value)
        path.write_bytes(content)

    return change


def with_length(key: bytes, length: int) -> Callable[[Path], None]:
    """Write another length of a list, or of a string."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        place = content.index(key) + len(key)
        kind = struct.unpack_from("<I", content, place)[0]
        place += 8 if kind == gguf.GGUFValueType.ARRAY else 4
        content[place : place + 8] = struct.pack("<Q", length)
        path.write_bytes(content)

    return change


def replaced(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncated(0.9), "truncated or damaged"),
        (truncated(0.3), "truncated or damaged"),
        (truncated(0.001), "truncated or damaged"),
        (with_count(8, 2**40), "truncated or damaged"),
        (with_count(16, 2**62), "truncated or damaged"),
        (with_count(16, 3), "truncated or damaged"),
        (with_length(b"tokenizer.ggml.token_type", 2**60), "truncated or damaged"),
        (with_length(b"tokenizer.ggml.merges", 2**60), "truncated or damaged"),
        (with_length(b"tokenizer.chat_template", 2**60), "truncated or damaged"),
        (replaced(b"GGUF"), "truncated or damaged"),
        (replaced(b"<html>login</html>"), "an HTML or XML page"),
        (replaced(b"version https://git-lfs.github.com/spec/v1\n"), "a git-lfs pointer"),
        (replaced(b"weights"), "not a GGUF file"),
        (replaced(b""), "an empty file"),
        (Path.unlink, "no such file"),
    ],
)
def test_a_damaged_file_is_refused_and_leaves_nothing(
    change: Callable[[Path], None], message: str, tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "base.gguf")
    change(path)
    with pytest.raises(InputError, match=message) as caught:
        local_model(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not [entry for entry in cache.glob("*/*") if not entry.name.endswith(".lock")]


def key(name: str, value: object) -> dict[str, Any]:
    return {"options": {name: value}}


def tensor(name: str, values: np.ndarray | None) -> dict[str, Any]:
    def change(_: gguf.GGUFWriter, tensors: dict[str, np.ndarray]) -> None:
        tensors.pop(name, None)
        if values is not None:
            tensors[name] = values

    return {"change": change}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"architecture": "gemma2"}, "architecture gemma2; as base model only llama and qwen2"),
        ({"pre_tokenizer": "tekken"}, "pre-tokenizer tekken is not supported, only gpt-2, smollm, qwen2"),
        ({"pre_tokenizer": "smollm", "architecture": "qwen2"}, "a qwen2 with the pre-tokenizer smollm"),
        ({"pre_tokenizer": "default"}, "pre-tokenizer default is not supported"),
        (key("tokenizer.ggml.model", "llama"), "of the kind llama; only byte-level BPE"),
        (key("tokenizer.ggml.pre", None), "lacks the key tokenizer.ggml.pre"),
        (key("tokenizer.ggml.merges", None), "lacks the key tokenizer.ggml.merges"),
        (key("tokenizer.ggml.merges", ["x yz"]), "do not fit together"),
        (key("tokenizer.ggml.merges", [1, 2]), "not a list of strings"),
        (key("tokenizer.ggml.token_type", [1, 1]), "lacks the types of some tokens"),
        (key("tokenizer.ggml.eos_token_id", None), "no control token as EOS"),
        (key("tokenizer.ggml.eos_token_id", 20), "no control token as EOS"),
        (key("tokenizer.ggml.eos_token_id", 10**6), "no control token as EOS"),
        ({"options": {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}}, "adds a BOS token"),
        (key("llama.expert_count", 8), "llama.expert_count is not supported"),
        (key("llama.logit_scale", 0.5), "llama.logit_scale is not supported"),
        (key("llama.block_count", None), "lacks the key llama.block_count"),
        (key("llama.feed_forward_length", [128, 64]), "llama.feed_forward_length is not int"),
        (key("llama.rope.dimension_count", 8), "8 for positions"),
        (key("llama.rope.scaling.type", "longrope"), r"scaling of positions \(longrope\)"),
        (key("llama.attention.head_count", 0), "not the weights of a model"),
        (tensor("rope_freqs.weight", np.linspace(1, 7, 8)), "is not Llama 3's"),
        (tensor("token_embd.weight", None), "not the weights of a model"),
        (tensor("token_embd.weight", np.ones((30, 64))), "more tokens than rows"),
        (tensor("blk.0.attn_q.weight", np.ones((62, 64))), "has 62 rows for 4 heads"),
        (
            tensor("blk.0.attn_v.weight", np.full((32, 64), np.inf)),
            "blk.0.attn_v.weight has values that are not finite",
        ),
        (tensor("blk.0.attn_sub_norm.weight", np.ones(64)), "blk.0.attn_sub_norm.weight has no place in a llama"),
        (tensor("blk.0.attn_q.scale", np.ones(64)), "blk.0.attn_q.scale has no place in a llama"),
    ],
)
def test_a_file_of_an_unsupported_kind_is_refused_by_name(
    file: dict[str, Any], message: str, tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "base.gguf", **file)
    with pytest.raises(InputError, match=message) as caught:
        local_model(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not [entry for entry in cache.glob("*/*") if not entry.name.endswith(".lock")]


def test_a_quantization_that_cannot_be_dequantized_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf", quantization=Q.F32)
    content = path.read_bytes()
    name = b"blk.0.ffn_down.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8  # after the number of dimensions and the dimensions
    path.write_bytes(content[:place] + struct.pack("<I", Q.I32) + content[place + 4 :])
    with pytest.raises(InputError, match=r"blk\.0\.ffn_down\.weight is of the type I32"):
        local_model(str(path))


def test_a_missing_tensor_is_named_by_the_check_of_the_base_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf", **tensor("blk.0.ffn_up.weight", None))
    with pytest.raises(InputError, match=r"up_proj"):
        check_base_model(local_model(str(path)))


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf")
    opened = Path.open

    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        return opened(Path("/dev/full") if self.suffix == ".safetensors" else self, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match="the disk is full"):
        local_model(str(path))
    monkeypatch.undo()
    assert not [entry for entry in cache.glob("gguf/*") if not entry.name.endswith(".lock")]
