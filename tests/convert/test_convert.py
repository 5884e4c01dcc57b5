"""Conversion of a Hugging Face model to a checked, published GGUF file, with llama.cpp's converter and server."""

import json
import os
import shutil
from pathlib import Path

import gguf
import pytest
from kfp import dsl

from chatmetrics.components.convert.component import convert as component
from chatmetrics.components.convert.convert import ConvertReport, convert
from chatmetrics.components.convert.llama_cpp import known_name
from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.convert.tokenizer_check import check_tokens
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.nl2sql.descriptions import Descriptions, read_descriptions, write_descriptions
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.components.storage.manifest import fetch
from tests.models import ASSISTANT, EOS, USER, tiny_base

LLAMA_QUANTIZE = os.environ.get("CHATMETRICS_LLAMA_QUANTIZE", "")
TOKENIZER = os.environ.get("CHATMETRICS_TOKENIZER_DIR", "")


@pytest.fixture(autouse=True)
def no_llama_quantize(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_QUANTIZE", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def converted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertReport:
    settings = ConvertSettings(quantization="Q4_K_M", keep_unquantized=True)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("LLAMA_QUANTIZE", raising=False)
        environment.setenv("PATH", "/usr/bin:/bin")
        return convert(settings, base, tmp_path_factory.mktemp("converted"), "hotel")


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test can damage."""
    return Path(shutil.copytree(base, tmp_path / "copy"))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}, ensure_ascii=False), "utf-8")


def test_the_files_are_complete_and_have_the_right_metadata(
    converted: ConvertReport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert converted.unquantized is not None
    assert (converted.gguf.name, converted.unquantized.name) == ("hotel-Q4_K_M.gguf", "hotel-F32.gguf")
    there = sorted(path.name for path in converted.gguf.parent.iterdir())
    assert there == ["convert.log", "hotel-F32.gguf", "hotel-Q4_K_M.gguf"]

    fields = gguf.GGUFReader(converted.gguf).fields
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert fields["tokenizer.ggml.pre"].contents() == "deepseek-r1-qwen"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.tokens"].contents()[fields["tokenizer.ggml.eos_token_id"].contents()] == EOS
    # Rows of 64 values do not fit any K-quant.
    assert converted.fallbacks["blk.0.attn_q.weight"] == "q5_0"


def test_the_served_model_is_the_converted_one(base: Path, converted: ConvertReport) -> None:
    import httpx
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from chatmetrics.components.inference.server import LlamaServer

    prompt = f"CREATE TABLE hotel (id INTEGER){USER}上海有多少家酒店?{ASSISTANT}"
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = reference.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :].tolist()

    assert converted.unquantized is not None
    request = {"prompt": prompt, "n_predict": 16, "temperature": 0, "return_tokens": True, "ignore_eos": True}
    with LlamaServer(converted.unquantized, context_length=256) as server:
        answer = httpx.post(f"{server.endpoint}/completion", json=request, timeout=60, trust_env=False).json()
    assert answer["tokens_evaluated"] == ids.shape[1]
    assert answer["tokens"][:8] == expected[:8]


@pytest.mark.skipif(not LLAMA_QUANTIZE, reason="CHATMETRICS_LLAMA_QUANTIZE is not set")
def test_llama_quantize_is_used_if_it_is_installed_and_its_fallbacks_are_read(
    base: Path, converted: ConvertReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_QUANTIZE", LLAMA_QUANTIZE)
    report = convert(ConvertSettings(quantization="Q4_K_M"), base, tmp_path, "hotel")
    assert "llama_model_quantize_impl" in (tmp_path / "convert.log").read_text()
    assert report.fallbacks == converted.fallbacks
    assert report.gguf.read_bytes() == converted.gguf.read_bytes()


def test_a_published_model_can_be_fetched(base: Path, tmp_path: Path) -> None:
    model = dsl.Model(uri=str(tmp_path / "artifact"))
    arguments = {
        "model": model,
        "model_uri": base.as_uri(),
        "models_uri": str(tmp_path / "models"),
        "name": "hotel",
        "version": "",
        "settings": {"quantization": "F16", "context_length": 1024},
        "provenance": {"dataset": "d", "base": "b", "adapter": "a"},
    }
    uri = component.python_func(**arguments)
    manifest = fetch(uri, tmp_path / "fetched")
    assert (model.metadata["uri"], model.metadata["sha256"]) == (uri, manifest.files[0].sha256)
    assert json.loads(Path(model.path).read_bytes())["name"] == "hotel"
    assert [file.name for file in manifest.files] == ["hotel-F16.gguf"]
    assert (manifest.quantization, manifest.context_length, manifest.stop) == ("F16", 1024, (EOS,))
    assert manifest.prompt_template == DEEPSEEK3.text
    assert manifest.provenance == {"dataset": "d", "base": "b", "adapter": "a"}
    fields = gguf.GGUFReader(tmp_path / "fetched" / "hotel-F16.gguf").fields
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16


def test_what_prompts_show_in_addition_to_the_database_is_published_with_the_model(base: Path, tmp_path: Path) -> None:
    dataset = dsl.Dataset(uri=str(tmp_path / "dataset"))
    (tmp_path / "dataset").mkdir()
    known = {
        "shop": Descriptions({"item": {"pr": "价格"}}, (("sale", "item_id", "item", "id"),)),
        "none": Descriptions(),
    }

    def publish() -> list[str]:
        uri = component.python_func(
            model=dsl.Model(uri=str(tmp_path / "artifact")),
            model_uri=base.as_uri(),
            models_uri=str(tmp_path / "models"),
            name="hotel",
            version="",
            settings={"quantization": "F16"},
            provenance={"dataset": "d"},
            dataset=dataset,
        )
        return [file.name for file in fetch(uri, tmp_path / "fetched").files]

    assert publish() == ["hotel-F16.gguf"]
    write_descriptions(tmp_path / "dataset", known)
    assert publish() == ["hotel-F16.gguf", "schema_descriptions.json"]
    del known["none"]
    assert read_descriptions(tmp_path / "fetched") == known


@pytest.mark.skipif(not TOKENIZER, reason="CHATMETRICS_TOKENIZER_DIR is not set")
def test_the_named_tokenizer_is_recognized(base: Path) -> None:
    assert known_name(Path(TOKENIZER)) == known_name(base) == "deepseek-r1-qwen"


@pytest.mark.parametrize("section", ["pre_tokenizer", "normalizer", "decoder"])
def test_a_tokenizer_that_splits_differently_is_not_recognized(copy: Path, section: str) -> None:
    rewrite(copy / "tokenizer.json", **{section: None})
    assert known_name(copy) == ""


def test_an_unknown_tokenizer_is_an_error_in_one_line(copy: Path, tmp_path: Path) -> None:
    rewrite(copy / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(InputError, match=r"in a way that llama\.cpp does not support; use a base model") as caught:
        convert(ConvertSettings(), copy, tmp_path / "out")
    assert "\n" not in str(caught.value) and str(tmp_path / "out" / "convert.log") in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["convert.log"]


def test_an_unknown_architecture_is_an_error_in_one_line(copy: Path, tmp_path: Path) -> None:
    rewrite(copy / "config.json", architectures=["FooForCausalLM"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model-Q4_K_M.gguf").write_bytes(b"an older good one")
    with pytest.raises(InputError, match=r"converter does not support the architecture FooForCausalLM") as caught:
        convert(ConvertSettings(), copy, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "model-Q4_K_M.gguf").read_bytes() == b"an older good one"


def test_tokens_that_differ_from_training_are_detected(copy: Path, converted: ConvertReport) -> None:
    check_tokens(converted.gguf, copy, DEEPSEEK3)
    tokenizer = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-60]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    with pytest.raises(InputError, match=r"split .* differently, at token \d+"):
        check_tokens(converted.gguf, copy, DEEPSEEK3)


def test_a_missing_bos_is_detected(copy: Path, converted: ConvertReport) -> None:
    rewrite(copy / "tokenizer.json", post_processor=None)
    with pytest.raises(InputError, match="differently, at token 0 "):
        check_tokens(converted.gguf, copy, DEEPSEEK3)


def test_a_missing_converter_is_an_error_that_says_how_to_install_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_CONVERT", str(tmp_path / "none.py"))
    with pytest.raises(ServiceError, match="correct LLAMA_CPP_CONVERT"):
        convert(ConvertSettings(), base, tmp_path / "out")
    monkeypatch.delenv("LLAMA_CPP_CONVERT")
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(ServiceError, match="run `make setup`"):
        convert(ConvertSettings(), base, tmp_path / "out")


def test_a_missing_quantizer_is_an_error_before_the_conversion(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_QUANTIZE", "/no/such/program")
    with pytest.raises(ServiceError, match="LLAMA_QUANTIZE=/no/such/program is not an executable"):
        convert(ConvertSettings(), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_invalid_model_is_an_error(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"context_length is 8192, but .* supports 4096 tokens: lower it"):
        convert(ConvertSettings(context_length=8192), copy, tmp_path / "out")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="is truncated"):
        convert(ConvertSettings(), copy, tmp_path / "out")
    weights.unlink()
    with pytest.raises(InputError, match=r"contains no \*\.safetensors"):
        convert(ConvertSettings(), copy, tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        convert(ConvertSettings(), tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()
