"""The files for LLaMA-Factory: its templates, as its source has them, render our prompts."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from chatmetrics.components.nl2sql.prompts.template import TEMPLATES, PromptTemplate
from chatmetrics.components.preprocess.llama_factory import NAMES, YAML, write_dataset_info
from chatmetrics.components.preprocess.settings import PreprocessSettings

SYSTEM, QUESTION, ANSWER = "CREATE TABLE t (a INT);", "Do it.\nHow many?", "SELECT 1"


@dataclass(frozen=True)
class Slots:
    """Slots of a template in LLaMA-Factory's src/llamafactory/data/template.py, without BOS."""

    user: str
    assistant: str = "{}"  # it appends EOS
    system: str = "{}"
    system_in_user: bool = False  # Llama2Template


THEIRS = {
    "deepseek3": Slots("<｜User｜>{}<｜Assistant｜>"),
    "chatml": Slots(
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "{}<|im_end|>\n",
        "<|im_start|>system\n{}<|im_end|>\n",
    ),
    "llama3": Slots(
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{}<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
    ),
    "gemma": Slots("<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n", "{}<end_of_turn>\n", "{}\n\n", True),
}


def rendered(slots: Slots, system: str) -> str:
    before = slots.system.format(system) if system else ""
    if slots.system_in_user:
        return slots.user.format(before + QUESTION)
    return before + slots.user.format(QUESTION)


def settings(**values: object) -> PreprocessSettings:
    return PreprocessSettings.model_validate({"tokenizer": "a: b # 'c'", "cutoff_length": 1024, **values})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", [SYSTEM, ""], ids=["schema", "no schema"])
def test_its_template_renders_the_same_prompt(name: str, system: str) -> None:
    template, theirs = TEMPLATES[name], THEIRS[NAMES[name]]
    instruction, _, question = QUESTION.partition("\n")
    assert template.prompt(system, instruction, question) == rendered(theirs, system)
    assert ANSWER + template.after_answer == theirs.assistant.format(ANSWER)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_yaml_names_the_template(tmp_path: Path, name: str) -> None:
    write_dataset_info(tmp_path, settings(), TEMPLATES[name])
    text = (tmp_path / YAML).read_text("utf-8")
    found = yaml.safe_load(text)
    assert found.get("template") == NAMES.get(name)
    assert ("No template of LLaMA-Factory" in text) == (name == "plain")
    assert (found["model_name_or_path"], found["cutoff_len"]) == ("a: b # 'c'", 1024)
    assert found["dataset"] in json.loads((tmp_path / "dataset_info.json").read_bytes())


def test_the_base_s_own_template_has_no_name_there(tmp_path: Path) -> None:
    own = PromptTemplate.parse("{system}[INST]{instruction}\n{input}[/INST]{answer}</s>")
    write_dataset_info(tmp_path, settings(), own)
    text = (tmp_path / YAML).read_text("utf-8")
    assert "template" not in yaml.safe_load(text) and "[/INST]" in text
