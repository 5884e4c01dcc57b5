"""The quantizer in Python writes the same bytes as llama-quantize."""

import os
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest

from chatmetrics.components.convert.quantize import MIXES, quantize
from chatmetrics.components.errors import InputError

LLAMA_QUANTIZE = os.environ.get("CHATMETRICS_LLAMA_QUANTIZE", "")
needs_llama_quantize = pytest.mark.skipif(not LLAMA_QUANTIZE, reason="CHATMETRICS_LLAMA_QUANTIZE is not set")


def write_model(path: Path, hidden: int, dtype: gguf.GGMLQuantizationType, layers: int = 9, tied: bool = False) -> Path:
    """Write random weights in the shapes of a Qwen2 model, which is all that llama-quantize needs."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("模型 with a 'name'")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "上", *(f"t{i}" for i in range(61))])
    writer.add_token_types([1] * 64)
    writer.add_add_bos_token(True)

    def add(name: str, *shape: int) -> None:
        weights = random.standard_normal(shape).astype(np.float32)
        weights[..., ::17] *= 8
        if len(shape) == 1:
            writer.add_tensor(name, weights)
        else:
            writer.add_tensor(name, gguf.quantize(weights, dtype), raw_dtype=dtype)

    add("token_embd.weight", 64, hidden)
    for layer in range(layers):
        for name, rows, columns in (
            ("attn_q", hidden, hidden),
            ("attn_k", hidden // 2, hidden),
            ("attn_v", hidden // 2, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", 2 * hidden, hidden),
            ("ffn_up", 2 * hidden, hidden),
            ("ffn_down", hidden, 2 * hidden),
        ):
            add(f"blk.{layer}.{name}.weight", rows, columns)
        add(f"blk.{layer}.attn_q.bias", hidden)
        add(f"blk.{layer}.attn_norm.weight", hidden)
        add(f"blk.{layer}.ffn_norm.weight", hidden)
    add("output_norm.weight", hidden)
    if not tied:
        add("output.weight", 64, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@needs_llama_quantize
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(
    ("hidden", "dtype", "tied"),
    [(256, "F32", False), (256, "BF16", True), (64, "F16", False), (64, "F32", True), (80, "F32", False)],
    ids=["256", "256-bf16-tied", "64-f16", "64-tied", "80"],
)
def test_the_file_is_byte_identical_to_that_of_llama_quantize(
    tmp_path: Path, mix: str, hidden: int, dtype: str, tied: bool
) -> None:
    source = write_model(tmp_path / "plain.gguf", hidden, gguf.GGMLQuantizationType[dtype], tied=tied)
    quantize(source, tmp_path / "ours.gguf", MIXES[mix])
    subprocess.run([LLAMA_QUANTIZE, source, tmp_path / "theirs.gguf", mix], check=True, capture_output=True)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_rows_that_do_not_fit_a_k_quant_get_another_type_and_are_reported(tmp_path: Path) -> None:
    source = write_model(tmp_path / "plain.gguf", 64, gguf.GGMLQuantizationType.F32, layers=4)
    fallbacks = quantize(source, tmp_path / "quantized.gguf", MIXES["Q4_K_M"])
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "quantized.gguf").tensors}
    assert fallbacks["blk.0.attn_q.weight"] == "q5_0" and types["blk.0.attn_q.weight"] == "Q5_0"
    assert fallbacks["blk.3.attn_v.weight"] == "q8_0" and types["blk.3.attn_v.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == types["blk.0.attn_q.bias"] == "F32"


def test_rows_that_fit_are_not_reported_and_the_sensitive_tensors_get_more_bits(tmp_path: Path) -> None:
    source = write_model(tmp_path / "plain.gguf", 256, gguf.GGMLQuantizationType.F32)
    assert quantize(source, tmp_path / "quantized.gguf", MIXES["Q4_K_M"]) == {}
    reader = gguf.GGUFReader(tmp_path / "quantized.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    down = [types[f"blk.{layer}.ffn_down.weight"] for layer in range(9)]
    assert down == ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K", "Q6_K"]
    assert types["output.weight"] == "Q6_K" and types["token_embd.weight"] == "Q4_K"
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert reader.fields["general.quantization_version"].contents() == 2
    assert reader.fields["general.name"].contents() == "模型 with a 'name'"
    assert reader.fields["tokenizer.ggml.tokens"].contents()[2] == "上"


def test_quantized_weights_are_close_to_the_original(tmp_path: Path) -> None:
    source = write_model(tmp_path / "plain.gguf", 256, gguf.GGMLQuantizationType.F32, layers=1)
    quantize(source, tmp_path / "quantized.gguf", MIXES["Q8_0"])
    before = {tensor.name: tensor.data for tensor in gguf.GGUFReader(source).tensors}
    for tensor in gguf.GGUFReader(tmp_path / "quantized.gguf").tensors:
        after = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.abs(after - before[tensor.name]).max() <= np.abs(before[tensor.name]).max() / 127


def test_an_architecture_with_further_rules_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "falcon.gguf", "falcon")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="a falcon model of 2 layers can only be quantized by llama-quantize: install"):
        quantize(tmp_path / "falcon.gguf", tmp_path / "quantized.gguf", MIXES["Q8_0"])
    assert not (tmp_path / "quantized.gguf").exists()
