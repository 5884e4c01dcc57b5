"""Quantization of a student to the type that its base had been rounded to before."""

import json
from pathlib import Path

import pytest

from chatmetrics.components.base_model.references import local_model
from chatmetrics.components.base_model.rounding import check_not_rounded_again
from chatmetrics.components.convert.convert import convert
from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, write_merged_template
from tests.base_model.gguf_bases import write_gguf


@pytest.mark.parametrize(
    ("rounded_to", "bits", "hidden", "quantization", "is_refused"),
    [
        ("Q4_1", 4, 576, "Q4_1", True),
        ("Q4_0", 4, 2048, "Q4_0", True),
        ("Q4_K", 4, 2048, "Q4_K_M", True),
        ("Q5_0", 5, 576, "Q4_K_M", True),  # K-quants fall back to Q5_0
        ("Q6_K", 6, 2048, "Q6_K", True),
        ("Q4_1", 4, 576, "Q4_0", False),
        ("Q4_1", 4, 576, "Q4_K_M", False),
        ("Q5_0", 5, 2048, "Q4_K_M", False),
        ("Q4_K", 4, 576, "Q4_K_M", False),
        ("Q8_0", 8, 576, "Q8_0", False),  # most of the training is left
        ("Q4_1", 4, 576, "F16", False),
        ("", 0, 576, "Q8_0", False),
    ],
)
def test_the_type_of_most_weights_decides(
    rounded_to: str, bits: int, hidden: int, quantization: str, is_refused: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": hidden}))
    (tmp_path / "gguf_source.json").write_text(json.dumps({"quantization": rounded_to, "bits": bits}))
    if not is_refused:
        return check_not_rounded_again(tmp_path, quantization)
    with pytest.raises(InputError, match=f"convert.quantization is {quantization}, but .* rounded to {rounded_to} "):
        check_not_rounded_again(tmp_path, quantization)


def test_convert_refuses_a_student_and_not_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = local_model(str(write_gguf(tmp_path / "base.gguf")))
    settings = ConvertSettings(quantization="Q4_0", context_length=64, base_template="plain")
    assert convert(settings, folder, tmp_path / "base").gguf.is_file()
    write_merged_template(folder, DEEPSEEK3)
    with pytest.raises(InputError, match="would undo the training"):
        convert(settings, folder, tmp_path / "student")
    assert not (tmp_path / "student").exists()
