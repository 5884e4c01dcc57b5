"""A base's own chat template: recognized, compared with transformers token by token, or refused with a reason."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.prompts.chat_template import choose_template
from chatmetrics.components.nl2sql.prompts.template import OWN, TEMPLATES, PromptTemplate, TemplateName
from tests.base_tokenizers import BASES, GEMMA3, LLAMA3, SMOLLM2, Base, write_tokenizer

SETTING = "preprocess.template"
SCHEMA = "CREATE TABLE 酒店 (\n  id INTEGER PRIMARY KEY,\n  name TEXT -- 'L''Hôtel'\n);"
INSTRUCTION, QUESTION = "Using the database 'hotel'.", "2024年上海评分前10的酒店? <b> & 'x'"
NAMES = {"qwen": "chatml", "smollm2": "chatml", "llama3": "llama3", "gemma": "gemma", "deepseek": "deepseek3"}
# A dated system prompt, as in Llama 3.1, and one that asks for the date, as in Llama 3.2.
DATED = LLAMA3.replace(
    "{% set loop_messages = messages %}",
    "{% set today = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}"
    "{% set loop_messages = messages %}",
).replace("+ message['content'] | trim", "+ ('Today: ' + today + '\n\n' if message['role'] == 'system' else '') "
          "+ message['content'] | trim")  # fmt: skip
THINKING = SMOLLM2.replace("<|im_start|>assistant\n' }}{% endif %}", "<|im_start|>assistant\n<think>\n' }}{% endif %}")
CLOSED = THINKING.replace("<think>\n", "<think>\n\n</think>\n\n")


def chosen(folder: Path, base: Base, name: TemplateName = "auto") -> PromptTemplate:
    return choose_template(name, write_tokenizer(folder, base), SETTING)


def with_chat_template(chat_template: str, base: str = "smollm2") -> Base:
    return replace(BASES[base], chat_template=chat_template)


@pytest.mark.parametrize(
    ("base", "name"),
    [
        *((BASES[base], name) for base, name in NAMES.items()),
        (with_chat_template(GEMMA3, "gemma"), "gemma"),
        (with_chat_template(THINKING), "chatml"),
        (with_chat_template(CLOSED), "chatml"),
        (with_chat_template("{% generation %}" + SMOLLM2 + "{%- endgeneration %}"), "chatml"),
    ],
    ids=[*NAMES, "gemma 3", "opens a block of reasoning", "opens and closes one", "marks answers for transformers"],
)
def test_a_chat_template_is_recognized(tmp_path: Path, base: Base, name: str) -> None:
    template = chosen(tmp_path, base)
    assert template.name == name and "think" not in template.text


@pytest.mark.parametrize("base", NAMES)
@pytest.mark.parametrize("schema", [SCHEMA, ""], ids=["schema", "no schema"])
def test_the_tokens_are_those_of_transformers(tmp_path: Path, base: str, schema: str) -> None:
    if not schema and base in ("qwen", "smollm2"):
        pytest.skip("the chat template adds a system prompt of its own")
    template = chosen(tmp_path, BASES[base])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    system, question = [{"role": "system", "content": schema}], f"{INSTRUCTION}\n{QUESTION}"
    if base == "gemma":  # has no system role
        system, question = [], f"{schema}\n\n{question}" if schema else question
    messages = [*(system if schema else []), {"role": "user", "content": question}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    if base == "deepseek":  # it opens a block of reasoning
        expected = expected[: -len(tokenizer("<think>\n", add_special_tokens=False)["input_ids"])]
    ids = tokenizer(template.prompt(schema, INSTRUCTION, QUESTION))["input_ids"]
    assert ids == expected
    begins = [ids[0] == tokenizer.bos_token_id, ids[1] == tokenizer.bos_token_id]
    assert begins == [bool(BASES[base].bos), False]


def test_a_tokenizer_that_adds_bos_gets_a_template_without_it(tmp_path: Path) -> None:
    """SmolLM2's BOS is also the mark of a turn."""
    template = chosen(tmp_path, replace(BASES["smollm2"], adds_bos=True))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for schema in (SCHEMA, ""):
        ids = tokenizer.encode(template.prompt(schema, INSTRUCTION, QUESTION)).ids
        whole = TEMPLATES["chatml"].prompt(schema, INSTRUCTION, QUESTION)
        assert ids == tokenizer.encode(whole, add_special_tokens=False).ids


def test_a_template_with_bos_keeps_it_for_a_tokenizer_that_does_not_add_it(tmp_path: Path) -> None:
    template = chosen(tmp_path, replace(BASES["llama3"], adds_bos=False))
    assert template.name == OWN and template.opening == "<|begin_of_text|>"
    prompt = template.prompt(SCHEMA, INSTRUCTION, QUESTION)
    assert prompt == "<|begin_of_text|>" + TEMPLATES["llama3"].prompt(SCHEMA, INSTRUCTION, QUESTION)


OTHERS = {
    # As Phi 4 mini's, which ends a conversation with EOS.
    "ends a conversation with EOS": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}",
        "{if system}<|system|>{system}<|end|>{end}<|user|>{instruction}\n{input}<|end|><|assistant|>{answer}<|end|>",
    ),
    # As Mistral Small's, whose own system prompt shows the date.
    "has a system prompt with a date": (
        "{{ bos_token }}{% if messages[0].role != 'system' %}[S]It is {{ strftime_now('%Y') }}.[/S]{% endif %}"
        "{% for m in messages %}{% if m.role == 'system' %}[S]{{ m.content }}[/S]"
        "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}"
        "{% endfor %}",
        "{if system}[S]{system}[/S]{end}[INST]{instruction}\n{input}[/INST]{answer}</s>",
    ),
    # As Llama 3.1's, which has a system turn in any case.
    "has a system turn in any case": (
        "{{ bos_token }}{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        "<|head|>system<|/head|>\n\nCut off: 2023\n\n{{ s }}<|end|>"
        "{% for m in messages if m.role != 'system' %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}",
        "{if system}<|head|>system<|/head|>\n\nCut off: 2023\n\n{system}<|end|>{end}<|head|>user<|/head|>\n\n"
        "{instruction}\n{input}<|end|><|head|>assistant<|/head|>\n\n{answer}<|end|>",
    ),
    # As Mistral 7B's, which puts the system message into the user's turn.
    "has the schema in the user's turn": (
        "{{ bos_token }}{% set s = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] {{ s if loop.first else '' }}"
        "{{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "[INST] {if system}{system}\n\n{end}{instruction}\n{input}[/INST]{answer}</s>",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_forms_are_derived(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, text = OTHERS[name]
    tokens = ("<s>", "</s>", "<|end|>", "<|user|>", "<|head|>", "<|/head|>")
    assert chosen(tmp_path, Base(tokens, "</s>", source, bos="<s>", adds_bos=True)).text == text
    assert "warning" not in capsys.readouterr().err


def test_an_unknown_template_of_the_simple_form_is_used(tmp_path: Path) -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[SYS]{{ m.content }}[/SYS]"
        "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    template = chosen(tmp_path, Base(("<s>", "</s>"), "</s>", source, bos="<s>", adds_bos=True))
    assert template.text == "{if system}[SYS]{system}[/SYS]{end}[INST] {instruction}\n{input} [/INST]{answer}</s>"
    assert (template.name, template.stop) == (OWN, "</s>")


def test_a_template_that_shows_the_date_shows_always_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = chosen(tmp_path, with_chat_template(DATED, "llama3"))
    assert "Today: 26 Jul 2024\n\n{system}" in template.text
    warning = capsys.readouterr().err
    assert "shows the date, and prompts will always show 26 Jul 2024" in warning and SETTING in warning


HOSTILE = {
    "syntax": ("{% for message in messages %}{{ message.content }", "cannot be read"),
    "nesting": ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "cannot be read"),
    "raises": ("{{ raise_exception('not today') }}", "fails (not today)"),
    "undefined": ("{{ messages[7].content.x }}", "fails"),
    "division": ("{{ 1 // 0 }}", "fails"),
    "escapes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails"),
    "changes": ("{% set x = messages.append(1) %}", "fails"),
    "endless": ("{% for i in range(10 ** 9) %}x{% endfor %}", "fails"),
    "empty": ("{{ '' }}", "does not show every message"),
    "twice": ("{% for m in messages %}{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}", "does not show every"),
    "backwards": ("{% for m in messages|reverse %}{{ m.content }}<|im_end|>{% endfor %}", "does not show every"),
    "upper case": (
        "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}",
        "fixed texts",
    ),
    "last only": ("{{ messages[-1].content }}<|im_end|>", "does not show every"),
    "no mark": ("{% for m in messages %}{{ m.content }}{% endfor %}", "no text between"),
    "escaped": (SMOLLM2.replace("message['content']", "message['content'] | e"), "fixed texts"),
    "one line": (SMOLLM2.replace("message['content']", "message['content'] | replace('\n', ' ')"), "fixed texts"),
    "braces": (SMOLLM2.replace("<|im_start|>'", "{x}'"), "braces"),
    "length": (
        SMOLLM2.replace("message['content'] +", "message['content']|length|string + message['content'] +"),
        "fix",
    ),
    "ends with text": (SMOLLM2.replace("<|im_end|>", "### End"), "not a special token"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_is_not_understood_is_refused(tmp_path: Path, name: str) -> None:
    source, reason = HOSTILE[name]
    with pytest.raises(InputError) as error:
        chosen(tmp_path, with_chat_template(source))
    message = str(error.value)
    assert any(part in message for part in reason.split("|")), message
    assert f"set {SETTING} to" in message and "\n" not in message and str(tmp_path) in message


def test_a_template_that_ignores_the_schema_gets_it_in_the_user_s_turn(tmp_path: Path) -> None:
    source = SMOLLM2.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    template = chosen(tmp_path, with_chat_template(source))
    prompt = template.prompt(SCHEMA, INSTRUCTION, QUESTION)
    assert f"<|im_start|>user\n{SCHEMA}\n\n{INSTRUCTION}\n{QUESTION}<|im_end|>\n" in prompt


def test_a_base_without_a_chat_template_gets_plain_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokenizer(tmp_path, BASES["smollm2"])
    (tmp_path / "chat_template.jinja").unlink()
    assert choose_template("auto", tmp_path, SETTING).name == "plain"
    assert "has no chat template" in capsys.readouterr().err


def test_the_chat_template_is_read_from_where_transformers_reads_it(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, BASES["smollm2"])
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    for found in (SMOLLM2, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": SMOLLM2}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": found}), "utf-8")
        assert choose_template("auto", tmp_path, SETTING).name == "chatml"


def test_a_named_template_is_used_if_the_base_has_its_end_of_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tokenizer(tmp_path, BASES["qwen"])
    assert choose_template("plain", tmp_path, SETTING) == TEMPLATES["plain"]
    assert choose_template("chatml", tmp_path, SETTING) == TEMPLATES["chatml"]
    assert "warning" not in capsys.readouterr().err
    assert choose_template("deepseek3", tmp_path, SETTING) == TEMPLATES["deepseek3"]
    assert f"{SETTING} is deepseek3, whose mark '<｜User｜>' is" in capsys.readouterr().err
    for name, end in (("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>")):
        with pytest.raises(InputError, match="not a special token") as error:
            choose_template(name, tmp_path, SETTING)  # type: ignore[arg-type]
        assert end in str(error.value) and SETTING in str(error.value)


@pytest.mark.skipif("CHATMETRICS_TOKENIZER_DIR" not in os.environ, reason="CHATMETRICS_TOKENIZER_DIR is not set")
def test_the_published_base_has_deepseek_s_template(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_template("auto", Path(os.environ["CHATMETRICS_TOKENIZER_DIR"]), SETTING).name == "deepseek3"
    assert "warning" not in capsys.readouterr().err
