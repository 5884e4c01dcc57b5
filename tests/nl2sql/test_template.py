"""The prompt template: its text, its prompts, and where it is read from."""

import json
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.prompts.template import (
    DEEPSEEK3,
    OWN,
    PLAIN,
    TEMPLATES,
    PromptTemplate,
    dataset_template,
    merged_template,
    write_merged_template,
)

SCHEMA = "CREATE TABLE t (a INT);"
PROMPTS = {
    "deepseek3": f"{SCHEMA}<｜User｜>Do it.\nHow many?<｜Assistant｜>",
    "chatml": f"<|im_start|>system\n{SCHEMA}<|im_end|>\n<|im_start|>user\nDo it.\nHow many?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama3": f"<|start_header_id|>system<|end_header_id|>\n\n{SCHEMA}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nDo it.\nHow many?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": f"<start_of_turn>user\n{SCHEMA}\n\nDo it.\nHow many?<end_of_turn>\n<start_of_turn>model\n",
    "plain": f"{SCHEMA}\n\nDo it.\nHow many?\n\nSQL:\n",
}
WITHOUT_SCHEMA = {
    "deepseek3": "<｜User｜>Do it.\nHow many?<｜Assistant｜>",
    "chatml": "<|im_start|>user\nDo it.\nHow many?<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\nDo it.\nHow many?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<start_of_turn>user\nDo it.\nHow many?<end_of_turn>\n<start_of_turn>model\n",
    "plain": "Do it.\nHow many?\n\nSQL:\n",
}
STOPS = {"deepseek3": "", "chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "plain": "\n\n"}

each = pytest.mark.parametrize("name", TEMPLATES)


@each
def test_a_prompt_has_the_schema_first_and_then_the_question(name: str) -> None:
    assert TEMPLATES[name].prompt(SCHEMA, "Do it.", "How many?") == PROMPTS[name]
    assert TEMPLATES[name].prompt("", "Do it.", "How many?") == WITHOUT_SCHEMA[name]
    assert TEMPLATES[name].stop == STOPS[name]


@each
def test_the_text_before_the_question_is_the_same_for_all_questions(name: str) -> None:
    prompts = [TEMPLATES[name].prompt(SCHEMA, "Do it.", question) for question in ("多少?", "<|im_end|>", "", "x" * 99)]
    shared = PROMPTS[name].partition("How many?")[0]
    assert all(prompt.startswith(shared) for prompt in prompts)


@each
def test_the_text_of_a_template_can_be_parsed_again(name: str) -> None:
    template = TEMPLATES[name]
    assert PromptTemplate.parse(template.text) == template and template.name == name


def test_the_text_of_deepseek_s_template_is_that_of_older_manifests() -> None:
    assert DEEPSEEK3.text == "{system}<｜User｜>{instruction}\n{input}<｜Assistant｜>"
    assert DEEPSEEK3.go() == "{{ .System }}<｜User｜>{{ .Prompt }}<｜Assistant｜>"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{instruction} {input}",
        "{instruction}\n{input}",  # nothing between question and answer
        "{question}<|x|>{instruction}\n{input}<|y|>",
        "{system}<|x|>{instruction}\n{input}<|{y}|>",
        "{if system}{system}<|x|>{instruction}\n{input}<|y|>",
        "{system}{system}<|x|>{instruction}\n{input}<|y|>",
    ],
)
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected the form"):
        PromptTemplate.parse(text)


@each
def test_a_prompt_is_normalized_and_the_marks_in_a_text_are_kept(name: str) -> None:
    template = TEMPLATES[name]
    assert template.prompt("", "i", "cafe\u0301") == template.prompt("", "i", "caf\u00e9")
    assert "'{x}' %s {{ }}" in template.prompt("'{x}' %s {{ }}", "i", "q")


def test_an_unknown_template_has_no_name() -> None:
    assert PromptTemplate.parse("{system}[INST]{instruction}\n{input}[/INST]{answer}</s>").name == OWN


@pytest.mark.parametrize("card", [None, {}, {"prompt_template": None}, {"prompt_template": ""}])
def test_a_dataset_without_a_template_has_deepseek_s(tmp_path: Path, card: object) -> None:
    if card is not None:
        (tmp_path / "dataset_card.json").write_text(json.dumps(card), "utf-8")
    assert dataset_template(tmp_path) == DEEPSEEK3


def test_the_template_of_a_dataset_is_in_its_card(tmp_path: Path) -> None:
    (tmp_path / "dataset_card.json").write_text(json.dumps({"prompt_template": PLAIN.text}), "utf-8")
    assert dataset_template(tmp_path) == PLAIN


@pytest.mark.parametrize("content", ["{", "[]", '{"prompt_template": "chatml"}', '{"prompt_template": 7}'])
def test_a_card_with_something_else_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_card.json").write_text(content, "utf-8")
    with pytest.raises(InputError, match=r"dataset_card\.json: its prompt_template cannot be read.*run preprocess"):
        dataset_template(tmp_path)


@each
def test_a_merged_model_s_template_is_in_its_folder(tmp_path: Path, name: str) -> None:
    assert merged_template(tmp_path) is None
    write_merged_template(tmp_path, TEMPLATES[name])
    assert merged_template(tmp_path) == TEMPLATES[name]
    (tmp_path / "prompt_template.txt").write_text("chatml", "utf-8")
    with pytest.raises(InputError, match=r"prompt_template\.txt: cannot be read as a prompt template"):
        merged_template(tmp_path)
