"""Broken base models, each of which every step refuses with the same line before it computes or writes anything."""

import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chatmetrics.components.errors import InputError
from chatmetrics.components.merge.merge import merge
from chatmetrics.components.merge.settings import MergeSettings
from chatmetrics.components.train import launch
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.pipelines.cli.main import main
from tests.base_model.changes import (
    INDEX,
    LFS,
    LOGIN,
    UP,
    a_folder,
    adapter_only,
    added_token,
    cut,
    dangling,
    edited,
    emptied,
    extended,
    fewer_rows,
    forget_tensor,
    header,
    index_names,
    nested,
    only,
    packed,
    prefixed,
    removed,
    replaced_by,
    shard,
    sharded,
    stacked,
    tensors,
    without,
    written,
    zipped,
)
from tests.models import EOS, tiny_base
from tests.train.small_dataset import write_dataset

DECODER = {"400": {"content": "<x>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}}
GPTQ = {"bits": 4, "quant_method": "gptq"}

# What is done to a good folder, and what the error says.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    # Files
    "empty folder": (emptied, "an empty folder"),
    "no folder": (shutil.rmtree, "no such folder"),
    "one level too high": (nested, r"config\.json: no such file; did you mean .*/base/snapshot"),
    "GGUF only": (replaced_by("model-Q4_K_M.gguf", b"GGUF\3"), "model-Q4_K_M.gguf is a GGUF file"),
    "GGUF with config": (only(("model.gguf", b"GGUF\3")), r"its only weights are GGUF \(model\.gguf\)"),
    "weights are GGUF": (only(("model.safetensors", b"GGUF\3\0\0\0" * 9)), r"model\.safetensors: a GGUF file"),
    "weights are an LFS pointer": (written("model.safetensors", LFS), r"model\.safetensors: a git-lfs pointer"),
    "a shard is an LFS pointer": (
        sharded(lambda folder: shard(folder, 3).write_text(LFS)),
        r"model-00004-of-000\d\d\.safetensors: a git-lfs pointer",
    ),
    "tokenizer is an LFS pointer": (written("tokenizer.json", LFS), r"tokenizer\.json: a git-lfs pointer"),
    "SentencePiece is an LFS pointer": (written("tokenizer.model", LFS), r"tokenizer\.model: a git-lfs pointer"),
    "chat template is an LFS pointer": (
        written("chat_template.jinja", LFS),
        r"chat_template\.jinja: a git-lfs pointer",
    ),
    "merges are an LFS pointer": (written("merges.txt", LFS), r"merges\.txt: a git-lfs pointer"),
    "vocabulary is an LFS pointer": (written("vocab.json", LFS), r"vocab\.json: a git-lfs pointer"),
    "index is an LFS pointer": (sharded(written(INDEX, LFS)), r"index\.json: a git-lfs pointer"),
    "config is an LFS pointer": (written("config.json", LFS), r"config\.json: a git-lfs pointer"),
    "weights are a login page": (written("model.safetensors", LOGIN), r"model\.safetensors: an HTML or XML page"),
    "config is a login page": (written("config.json", f"\n{LOGIN}"), r"config\.json: an HTML or XML page"),
    "tokenizer is a login page": (written("tokenizer.json", LOGIN), r"tokenizer\.json: an HTML or XML page"),
    "weights are a zip": (zipped, r"model\.safetensors: a zip archive"),
    "weights are a pickle": (written("model.safetensors", b"\x80\x02}q\0."), r"model\.safetensors: a Python pickle"),
    "weights are a gzip": (written("model.safetensors", b"\x1f\x8b\x08\0" * 9), r"model\.safetensors: a gzip archive"),
    "weights are text": (written("model.safetensors", "no weights at all\n" * 99), "not a safetensors file"),
    "weights are empty": (written("model.safetensors", b""), r"model\.safetensors: an empty file"),
    "weights are zeros": (written("model.safetensors", bytes(9999)), "not a safetensors file"),
    "weights are a folder": (a_folder, r"model\.safetensors: not a file"),
    "weights are a dangling link": (dangling, r"a link to a file that does not exist \(\.\./blobs/0123\)"),
    "cut in the length": (cut(5), r"model\.safetensors is truncated: 5 of"),
    "cut in the header": (cut(100), r"model\.safetensors is truncated: 100 of"),
    "cut in the data": (cut(-1000), r"model\.safetensors is truncated"),
    "cut by one byte": (cut(-1), r"model\.safetensors is truncated"),
    "a byte too long": (
        lambda folder: written("model.safetensors", (folder / "model.safetensors").read_bytes() + b"\0")(folder),
        r"model\.safetensors: longer than its header says",
    ),
    "a gap in the header": (header(lambda all: all.pop(UP)), "not a safetensors file, or damaged"),
    "another shape in the header": (header(lambda all: all[UP].update(shape=[9, 9])), "or damaged"),
    "an unknown type in the header": (header(lambda all: all[UP].update(dtype="X1")), "or damaged"),
    "a negative length in the header": (header(lambda all: all[UP].update(shape=[-256, -64])), "or damaged"),
    "a list as header": (written("model.safetensors", struct.pack("<Q", 2) + b"[]"), "not a safetensors file"),
    "no tensors": (written("model.safetensors", struct.pack("<Q", 2) + b"{}"), "contain no tensors"),
    "only .bin": (
        only(("pytorch_model.bin", b"PK")),
        r"its weights are in pytorch_model\.bin; save them as safetensors",
    ),
    "only .pth": (only(("consolidated.00.pth", b"PK")), r"its weights are in consolidated\.00\.pth"),
    "only .bin shards": (
        only(("pytorch_model-00001-of-00002.bin", b"PK"), ("pytorch_model-00002-of-00002.bin", b"PK")),
        "its weights are in pytorch_model-00001-of-00002.bin, pytorch_model-00002-of-00002.bin",
    ),
    "no weights": (removed("model.safetensors"), r"it contains no \*\.safetensors"),
    "weights with another name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "consolidated.safetensors"),
        r"in consolidated\.safetensors, not in model\.safetensors",
    ),
    "only one of several precisions": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model.fp16.safetensors"),
        r"in model\.fp16\.safetensors, not in model\.safetensors",
    ),
    "a missing shard": (
        sharded(lambda folder: shard(folder, 1).unlink()),
        r"model-00002-of-000\d\d\.safetensors of the",
    ),
    "missing shards": (
        sharded(lambda folder: [shard(folder, number).unlink() for number in (5, 0)]),
        r"model-00001-of-000\d\d\.safetensors, model-00006-of-000\d\d\.safetensors of the \d+ files .* are missing",
    ),
    "a truncated shard": (
        sharded(lambda folder: shard(folder, 1).write_bytes(shard(folder, 1).read_bytes()[:-9])),
        r"model-00002-of-000\d\d\.safetensors is truncated",
    ),
    "no index": (sharded(removed(INDEX)), r"model\.safetensors\.index\.json is missing"),
    "index of a tensor that does not exist": (
        sharded(lambda folder: index_names("model.x.weight", shard(folder, 0).name)(folder)),
        r"names 1 tensors that their files do not have: model\.x\.weight",
    ),
    "index with the wrong file": (
        sharded(lambda folder: index_names(UP, shard(folder, 0).name)(folder)),
        r"names 1 tensors that their files do not have: model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "index without a tensor": (sharded(forget_tensor), "does not name 1 tensors of the files"),
    "index outside the folder": (sharded(index_names(UP, "../x.safetensors")), "no weight_map"),
    "index without weight_map": (sharded(written(INDEX, "{}")), "no weight_map"),
    "index not JSON": (sharded(written(INDEX, "{")), r"index\.json: not JSON"),
    "an old single file next to shards": (
        sharded(lambda folder: shutil.copy(shard(folder, 0), folder / "model.safetensors")),
        r"both model\.safetensors and model\.safetensors\.index\.json",
    ),
    "a second precision": (
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors"),
        r"model\.fp16\.safetensors next to model\.safetensors",
    ),
    "an adapter among the files": (
        written("adapter_config.json", '{"peft_type": "LORA"}'),
        r"contains an adapter \(adapter_config\.json\); transformers would load it on top",
    ),
    "adapter weights among the files": (written("adapter_model.safetensors", b"x"), r"adapter \(adapter_model\.safet"),
    "an adapter": (adapter_only, "contains an adapter .*; name its base model org/base instead"),
    # Config
    "no config": (removed("config.json"), r"config\.json: no such file"),
    "config not JSON": (written("config.json", "{,}"), r"config\.json: not JSON"),
    "config is a list": (written("config.json", "[]"), r"config\.json: not a JSON object but list"),
    "config is not UTF-8": (written("config.json", b"\xff\xfe{}"), r"config\.json: not JSON"),
    "config is empty": (written("config.json", ""), r"config\.json: an empty file"),
    "config without model_type": (edited("config.json", model_type=None), "no model_type"),
    "config of a number as model_type": (edited("config.json", model_type=7), "no model_type"),
    "config without architectures": (edited("config.json", architectures=None), "no list of architectures"),
    "unknown model type": (
        edited("config.json", model_type="foo", architectures=["LlamaForCausalLM"]),
        r"does not know models of type 'foo'",
    ),
    "remote code": (
        edited("config.json", model_type="foo", auto_map={"AutoModelForCausalLM": "modeling_foo.Foo"}),
        r"needs code from its own files \(auto_map\), which is never run",
    ),
    "architecture unknown to llama.cpp": (
        edited("config.json", architectures=["FooForCausalLM"]),
        "llama.cpp's converter does not support the architecture FooForCausalLM",
    ),
    "architecture of another type": (
        edited("config.json", architectures=["LlamaForCausalLM"]),
        "LlamaForCausalLM is not of its model_type 'qwen2' but of 'llama'",
    ),
    "a classifier": (
        edited("config.json", architectures=["Qwen2ForSequenceClassification"]),
        "Qwen2ForSequenceClassification does not write text",
    ),
    "an encoder": (
        edited("config.json", model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "a model of type t5 does not write text|no model can be built",
    ),
    "text for a number": (edited("config.json", hidden_size="large"), "no model can be built from it"),
    "padding beyond the embedding": (edited("config.json", pad_token_id=400), "no model can be built from it"),
    "generation config not JSON": (written("generation_config.json", "{"), r"generation_config\.json: not JSON"),
    # Quantized
    "GPTQ": (edited("config.json", quantization_config=GPTQ), "already quantized .*: gptq"),
    "bitsandbytes": (
        edited("config.json", quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"}),
        "already quantized .*: bitsandbytes",
    ),
    "FP8": (edited("config.json", quantization_config={"quant_method": "fp8"}), "already quantized .*: fp8"),
    "MLX": (edited("config.json", quantization={"group_size": 64, "bits": 4}), "already quantized"),
    "AutoGPTQ's own file": (written("quantize_config.json", '{"bits": 4}'), "already quantized .*quantize_config.json"),
    "AWQ's own file": (written("quant_config.json", '{"w_bit": 4}'), "already quantized"),
    "packed tensors": (packed(".qweight", torch.int32), "already quantized .*qweight"),
    "int8 with scales": (packed(".SCB", torch.float32), "already quantized .*SCB"),
    "int8 weights": (stacked("up_proj", lambda it: it.to(torch.int8)), "already quantized .*I8"),
    "uint8 weights": (stacked("up_proj", lambda it: it.to(torch.uint8)), "already quantized .*U8"),
    "float8 weights": (stacked("up_proj", lambda it: it.to(torch.float8_e4m3fn)), "already quantized .*F8_E4M3"),
    "float64 weights": (stacked("up_proj", lambda it: it.double()), "weights of type F64"),
    # Names and shapes
    "without a matrix": (without(UP), rf"lacks {UP}, 1 of the 27 tensors of Qwen2ForCausalLM"),
    "without a bias": (without("0.self_attn.q_proj.bias"), r"lacks model\.layers\.0\.self_attn\.q_proj\.bias"),
    "without a norm": (without("model.norm.weight"), r"lacks model\.norm\.weight"),
    "without the last layer": (without("layers.1."), "lacks layer 1 of the 2 layers"),
    "without the first layer": (without("layers.0."), "lacks layer 0 of the 2 layers"),
    "without half a layer": (without("1.self_attn"), r"lacks .* 7 of the 27 tensors"),
    "without the head": (without("lm_head"), r"lacks lm_head\.weight"),
    "without the embedding": (without("embed_tokens"), r"lacks model\.embed_tokens\.weight"),
    "without embedding and head, tied": (
        lambda folder: ([without("lm_head", "embed")(folder), edited("config.json", tie_word_embeddings=True)(folder)]),
        r"lacks lm_head\.weight, model\.embed_tokens\.weight",
    ),
    "more layers in config": (edited("config.json", num_hidden_layers=3, layer_types=None), "lacks layer 2 of the 3"),
    "fewer layers in config": (edited("config.json", num_hidden_layers=1, layer_types=None), "has layer 1, for which"),
    "wider in config": (edited("config.json", hidden_size=128), "has the shape .* in the checkpoint, and"),
    "larger vocabulary in config": (edited("config.json", vocab_size=500), r"shape \(400, 64\) .* and \(500, 64\)"),
    "a transposed matrix": (stacked("0.mlp.up_proj", torch.Tensor.t), r"up_proj\.weight has the shape \(64, 256\)"),
    "a bias without place": (
        extended(model__layers__0__self_attn__o_proj__bias=torch.zeros(64)),
        r"has model\.layers\.0\.self_attn\.o_proj\.bias, for which the Qwen2ForCausalLM of config\.json has no place",
    ),
    "prefix of DDP": (prefixed("module."), r"all names in the checkpoint begin with 'module\.'"),
    "prefix of PEFT": (prefixed("base_model.model."), r"begin with 'base_model\.model\.'"),
    "prefix of torch.compile": (prefixed("_orig_mod."), r"begin with '_orig_mod\.'"),
    "model twice": (prefixed("model."), r"begin with 'model\.'"),
    "a prefix of one layer": (
        tensors(lambda all: {f"module.{name}" if "layers.1" in name else name: it for name, it in all.items()}),
        r"model .*: 12 names in the checkpoint begin with 'module\.', so that 12 of the 27 tensors .* are not found",
    ),
    "an unknown prefix": (prefixed("policy.net."), r"begin with 'policy\.net\.'"),
    # Tokenizer
    "no tokenizer": (removed("tokenizer.json"), r"tokenizer\.json: no such file"),
    "no tokenizer_config": (removed("tokenizer_config.json"), r"tokenizer_config\.json: no such file"),
    "tokenizer not JSON": (written("tokenizer.json", "{"), r"tokenizer\.json: not JSON"),
    "tokenizer of another form": (written("tokenizer.json", "{}"), r"tokenizer\.json: not a tokenizer"),
    "a token beyond the matrix": (
        added_token(400),
        r"tokenizer\.json: token '\[PAD\]' has the id 400, but .* 400 rows",
    ),
    "tokens beyond the matrix": (fewer_rows, r"has the id 390 \(and 9 more tokens\), but .* 390 rows"),
    "a token of added_tokens.json": (
        written("added_tokens.json", '{"<x>": 400}'),
        r"added_tokens\.json: token '<x>' has the id 400",
    ),
    "a token of tokenizer_config": (
        edited("tokenizer_config.json", added_tokens_decoder=DECODER),
        r"tokenizer_config\.json: token '<x>' has the id 400",
    ),
    "a pad token without row": (
        edited("tokenizer_config.json", pad_token="[NEW]"),
        r"tokenizer_config\.json: token '\[NEW\]' has the id 400",
    ),
    "EOS null": (
        lambda folder: (folder / "tokenizer_config.json").write_text(
            (folder / "tokenizer_config.json").read_text("utf-8").replace(f'"eos_token": "{EOS}"', '"eos_token": null')
        ),
        f"has no EOS token, .*ends answers with '{EOS}'",
    ),
    "an EOS that is no token": (
        edited("tokenizer_config.json", eos_token="</s>"),
        "its eos_token '</s>' is not a token of tokenizer.json",
    ),
    "no EOS": (edited("tokenizer_config.json", eos_token=None), f"has no EOS token, .*ends answers with '{EOS}'"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def base(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "base"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def command(*words: str | Path) -> None:
    """Run the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["chatmetrics", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 3


@pytest.mark.parametrize("name", BROKEN)
def test_every_step_refuses_a_broken_base_with_the_same_line(
    name: str,
    base: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaks, message = BROKEN[name]
    breaks(base)
    monkeypatch.setattr(launch, "subprocess", None)  # nothing is started
    output = tmp_path / "output"
    with pytest.raises(InputError, match=message) as caught:
        launch.train(TrainSettings(), dataset, str(base), output / "adapter", output / "checkpoints")
    expected = str(caught.value)
    assert "\n" not in expected and str(base) in expected and caught.value.exit_status == 3
    capsys.readouterr()
    with pytest.raises(InputError) as caught:
        merge(MergeSettings(), str(base), tmp_path / "no adapter", output / "merged")
    assert str(caught.value) == expected
    for words in (
        ("train", dataset, "-o", output / "adapter", "--base-model", base),
        ("merge", tmp_path, "-o", output / "merged", "--base-model", base),
        ("convert", base, "-o", output / "gguf"),
        ("doctor", "--base-model", base),
    ):
        command(*words)
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err == f"error: {expected}\n", words
    if base.exists():  # otherwise the name could be one of the Hub's
        command("estimate", "hotel-demo", "--gpu-pool", "CPU", "--set", f"base_model={base}")
        assert capsys.readouterr().err == f"error: {expected}\n"
    assert not output.exists()
