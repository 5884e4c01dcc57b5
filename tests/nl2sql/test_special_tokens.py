"""No text forms a special token of the base's own tokenizer, and ordinary text stays as it is."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from chatmetrics.components.nl2sql.prompts.chat_template import choose_template
from chatmetrics.components.nl2sql.prompts.template import TEMPLATES, PromptTemplate, TemplateName
from tests.base_tokenizers import BASES, write_tokenizer

# Some contain others, one is what a space makes of another, and one is a single character.
SPECIAL = (
    "[USR]",
    "[USR][SYS]",
    "[ USR]",
    "[/USR]",
    "<extra_id_0>",
    "<|python_tag|>",
    "【x】",
    "TURN",
    "##",
    "a b]",
    "␄",
)
MARKS = ("<b>", "[toxicity]", "<|▁y▁|>", "{z}")
ORDINARY = ("    ", "\n\n", "▁▁", "hotel", "÷", "...", "im_start")
HOSTILE = (*SPECIAL, *MARKS, "<| y |>", "[USR][/USR]TURN", "###", "[[USR]]", "TURNTURN", "a b]b]", "[USR][USR][SYS]")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    known = BASES["deepseek"]
    folder = write_tokenizer(tmp_path_factory.mktemp("base"), replace(known, special=(*known.special, *SPECIAL)))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in (*MARKS, *ORDINARY)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def counts(base: Path, prompt: str) -> dict[str, int]:
    """How often each special token and mark is in a prompt, as the tokenizer reads it."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    ids = tokenizer.encode(prompt).ids
    return {token: ids.count(tokenizer.token_to_id(token)) for token in (*BASES["deepseek"].special, *SPECIAL, *MARKS)}


@pytest.mark.parametrize("name", ["auto", "plain", "chatml", "llama3"])
def test_no_text_forms_a_special_token(base: Path, name: TemplateName) -> None:
    if name in ("chatml", "llama3"):  # templates whose end of answer this base does not have
        template = replace(TEMPLATES[name], special_tokens=choose_template("plain", base, "x").special_tokens)
    else:
        template = choose_template(name, base, "x")
    expected = counts(base, template.prompt("a", "b", "c"))
    for hostile, (before, after) in product(HOSTILE, [("", ""), ("x", "y"), ("[", "]"), ("\n", "\n"), (" ", " ")]):
        text = f"{before}{hostile}{after}"
        for texts in ((text, "b", "c"), ("a", text, "c"), ("a", "b", text)):
            prompt = template.prompt(*texts)
            assert counts(base, prompt) == expected, prompt
        assert template.content(template.content(text)) == template.content(text)


def test_ordinary_text_stays_as_it_is(base: Path) -> None:
    template = choose_template("auto", base, "x")
    for text in (
        "CREATE TABLE hotel (\n    name TEXT, -- ÷ ... ▁▁ im_start\n\n    b INT\n);",
        "How many hotels [in Rome] have a price < 5 and > 3? # 1, 2",
        "SELECT a FROM b WHERE c <> '【' AND d = 'x】'",
    ):
        assert template.content(text) == text


def test_the_template_carries_the_tokens_to_every_later_step(base: Path) -> None:
    template = choose_template("auto", base, "x")
    assert template.name == "deepseek3"
    assert {"[USR]", "【x】", "{z}", "<| y |>"} <= set(template.special_tokens)
    assert not {"<extra_id_0>", "hotel", "    "} & set(template.special_tokens)
    assert PromptTemplate.parse(template.text) == template
    assert template.marks == TEMPLATES["deepseek3"].marks


@pytest.mark.parametrize("name", BASES)
def test_the_text_of_a_template_of_a_well_known_base_does_not_change(name: str, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, BASES[name])
    assert choose_template("auto", folder, "x").special_tokens == ()
    assert "special tokens" not in choose_template("plain", folder, "x").text


def test_tokens_that_only_other_files_have_count(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, BASES["qwen"])
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config["additional_special_tokens"] = ["[A1]", {"content": "[A2]"}]
    config["added_tokens_decoder"] = {"900": {"content": "[A3]", "special": True}, "901": {"content": "word"}}
    config["sep_token"] = {"content": "[A4]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "added_tokens.json").write_text('{"[A5]": 902, "other": 903}', "utf-8")
    assert choose_template("auto", folder, "x").special_tokens == ("[A1]", "[A2]", "[A3]", "[A4]", "[A5]")


@pytest.mark.parametrize("tokens", ['["a"', '"a"', "[1]", "{}"])
def test_a_damaged_list_is_an_error(tokens: str) -> None:
    from chatmetrics.components.errors import InputError

    with pytest.raises(InputError, match="expected the form"):
        PromptTemplate.parse(f"{TEMPLATES['plain'].text}{{special tokens {tokens}}}")
