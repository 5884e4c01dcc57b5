"""The template that a base model's prompts get: the one that a setting names, or the base's own chat template.

A chat template is a program in Jinja. It is run in a sandbox on short messages, and the marks around them are its
prompt template, if it has the simple form: fixed texts around the messages. The result is compared with the program
once more, on other messages.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.answers.reasoning import REASONING_CLOSES, REASONING_OPENS
from chatmetrics.components.nl2sql.prompts.special_tokens import special_tokens
from chatmetrics.components.nl2sql.prompts.template import PLAIN, TEMPLATES, PromptTemplate, TemplateName
from chatmetrics.components.nl2sql.prompts.token_counter import read_object, read_tokenizer

Render = Callable[..., str]  # messages as (role, text); `prompt` ends with the marks before an answer

# A template that shows the date gets this one, so that training and serving have the same prompts. It is the one that
# Llama 3.2's template shows if it is not told the date.
DATE = datetime(2024, 7, 26)
ANOTHER_DATE = datetime(1999, 12, 31)
SCHEMA, QUESTION, ANSWER, SECOND = "SCHEMA-1", "QUESTION-1", "ANSWER-1", "QUESTION-2"
TEST_SCHEMA = "CREATE TABLE 酒店 (\n  id INTEGER PRIMARY KEY, -- '<b>', \"x\", {y}, \\n\n  name TEXT\n);"
TEST_QUESTION = "Using the database 'hotel_1', translate it.\nHow many 酒店 have 'Ann''s' name?  <5 & >3"


class _Unusable(Exception):
    """Why a chat template cannot be used, as the end of a sentence that begins with "its chat template"."""


def choose_template(name: TemplateName, model: Path, setting: str) -> PromptTemplate:
    """The prompt template for a base model.

    Args:
        name: the template's name, or `auto` for the model's own chat template; `plain` if it has none.
        model: folder with the model's tokenizer.json, tokenizer_config.json and, if it has one, chat template.
        setting: name of the setting that `name` is from, for messages.

    Raises:
        InputError: the tokenizer cannot be read, its chat template cannot be used, or it lacks the token that ends an
            answer; names the setting.
    """
    tokenizer, config = read_tokenizer(model), read_object(model / "tokenizer_config.json")
    if name == "auto":
        chosen = _own_template(model, tokenizer, config, setting)
        shown = (
            f"the template {chosen.name}" if chosen.name in TEMPLATES else f"the base's own template {chosen.text!r}"
        )
        console.info(f"{setting}: prompts have {shown}")
    else:
        chosen = TEMPLATES[name]
        _warn_of_foreign_marks(chosen, tokenizer, model, setting)
    if chosen.stop.strip() and chosen.stop not in _added_tokens(tokenizer):
        raise InputError(
            f"the template {chosen.name} ends an answer with {chosen.stop!r}, which is not a special token of {model}; "
            f"set {setting} to auto, the model's own chat template, or to plain"
        )
    return replace(chosen, special_tokens=special_tokens(model, tokenizer))


def _own_template(model: Path, tokenizer: Tokenizer, config: Mapping[str, Any], setting: str) -> PromptTemplate:
    source = _chat_template(model, config)
    if source is None:
        console.note(f"{model} has no chat template, so its prompts have the template plain ({setting} is auto)")
        return PLAIN
    tokens = _special_tokens(model, config)
    try:
        render = _renderer(source, tokens, DATE)
        template = _derived(render, tokens.get("bos_token", ""))
        if _shows_date(source, tokens, render):
            console.warning(
                f"{model}: its chat template shows the date, and prompts will always show {DATE:%d %b %Y}; set "
                f"{setting} to llama3, chatml, gemma, deepseek3 or plain for prompts without a date"
            )
    except _Unusable as error:
        choices = ", ".join(sorted(TEMPLATES))
        raise InputError(f"{model}: its chat template {error}; set {setting} to one of {choices}") from error
    bos, eos = tokens.get("bos_token", ""), tokens.get("eos_token", "")
    if bos and tokenizer.encode("a").ids[:1] == [tokenizer.token_to_id(bos)]:
        template = _without_bos(template, bos)
    if template.name not in TEMPLATES and template.stop == eos:
        # Answers end with EOS in any case. Templates are named and compared without it.
        shorter = replace(template, after_answer="")
        template = shorter if shorter.name in TEMPLATES else template
    return template


def _derived(render: Render, bos: str) -> PromptTemplate:
    """Find the marks around the messages in a chat template's prompts.

    Raises:
        _Unusable: it is not of the simple form.
    """
    alone = _parts(render(("user", QUESTION)), QUESTION)
    closed = _parts(render(("user", QUESTION), ("assistant", ANSWER), prompt=False), QUESTION, ANSWER)
    turns = _parts(render(("user", QUESTION), ("assistant", ANSWER), ("user", SECOND)), QUESTION, ANSWER, SECOND)
    after_answer = closed[2]
    if not turns[2].startswith(after_answer):  # it ends a whole conversation with something more, such as EOS
        after_answer = turns[2].removesuffix(_common_ending(alone[0], turns[2]))
        if not after_answer or not closed[2].startswith(after_answer):
            raise _Unusable("ends an answer in several ways")
    before_question = turns[2].removeprefix(after_answer)
    after_question = _without_reasoning(alone[1])
    opening, before_schema, after_schema, before_question = _around_schema(render, alone[0], before_question, bos)
    template = PromptTemplate(opening, before_schema, after_schema, before_question, after_question, after_answer)
    try:
        if PromptTemplate.parse(template.text) != template:
            raise _Unusable("has marks that cannot be told apart")
    except InputError as error:
        raise _Unusable("has no text between question and answer, or braces in its marks") from error
    _compare(template, render)
    return template


def _around_schema(render: Render, alone: str, before: str, bos: str) -> tuple[str, str, str, str]:
    """Opening, the marks around the schema, and the mark before the question.

    Args:
        render: the chat template.
        alone: the text before a question without a schema. It may contain a system prompt of the template's own.
        before: the text between an answer and the next question.
        bos: BOS, which is part of the opening.
    """
    try:
        found = _parts(render(("system", SCHEMA), ("user", QUESTION)), SCHEMA, QUESTION)
    except _Unusable:
        # No system role: the schema is put at the start of the user's turn.
        return alone, "", "\n\n", ""
    if not found[1].endswith(before) or not before:
        # The template itself puts it there.
        return alone, found[0].removeprefix(alone), found[1], ""
    opening = alone.removesuffix(before)
    if not found[0].startswith(opening):  # a system prompt of the template's own, which the schema replaces
        opening = bos if found[0].startswith(bos) and not before.startswith(bos) else ""
    return opening, found[0].removeprefix(opening), found[1].removesuffix(before), before


def _compare(template: PromptTemplate, render: Render) -> None:
    """Compare a derived template with the program, on a schema and a question of several lines."""
    instruction, _, question = TEST_QUESTION.partition("\n")
    expected = template.prompt(TEST_SCHEMA, instruction, question)
    messages = (("system", TEST_SCHEMA), ("user", TEST_QUESTION))
    try:
        rendered = render(*messages)
        if TEST_SCHEMA not in rendered:
            raise _Unusable("leaves the system message out")
    except _Unusable:
        rendered = render(("user", f"{TEST_SCHEMA}{template.after_schema}{TEST_QUESTION}"))
    before, asked, after = rendered.rpartition(TEST_QUESTION)
    if before + asked + _without_reasoning(after) != expected:
        raise _Unusable("is not of the form: fixed texts around schema and question")


def _parts(text: str, *messages: str) -> list[str]:
    """The texts before, between and after the messages.

    Raises:
        _Unusable: a message is not there exactly once, or they are in another order.
    """
    parts = []
    for message in messages:
        before, found, text = text.partition(message)
        if not found or message in text:
            raise _Unusable("does not show every message once and in order")
        parts.append(before)
    return [*parts, text]


def _common_ending(first: str, second: str) -> str:
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(first), reversed(second), strict=False))
    return second[len(second) - len(list(equal)) :]


def _without_reasoning(mark: str) -> str:
    """The text after a question up to the block of reasoning that it opens, even if it closes it again.

    An answer is SQL, or the reasoning that the student was trained on.
    """
    places = [found.start() for tag in (REASONING_OPENS, REASONING_CLOSES) if (found := tag.search(mark))]
    return mark[: min(places, default=len(mark))]


def _without_bos(template: PromptTemplate, bos: str) -> PromptTemplate:
    """The same template for a tokenizer that adds BOS itself, so that there is one BOS."""
    if template.opening.startswith(bos):
        return replace(template, opening=template.opening.removeprefix(bos))
    if not template.opening and template.before_schema.startswith(bos) and template.before_question.startswith(bos):
        return replace(
            template,
            before_schema=template.before_schema.removeprefix(bos),
            after_schema=template.after_schema + bos,
            before_question=template.before_question.removeprefix(bos),
        )
    return template


def _renderer(source: str, tokens: Mapping[str, str], date: datetime) -> Render:
    """The chat template as a function, in the environment that transformers gives it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment.globals |= {"raise_exception": raise_exception, "strftime_now": date.strftime}
    # Marks of the answer's tokens, for transformers only.
    source = re.sub(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}", r"{#\1 generation \2#}", source)
    try:
        compiled = environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise _Unusable(f"cannot be read ({_first_line(error)})") from error

    def render(*messages: tuple[str, str], prompt: bool = True) -> str:
        described = [{"role": role, "content": text} for role, text in messages]
        try:
            # Templates of reasoning models take one of these two, and then ask for an answer without reasoning.
            return compiled.render(
                messages=described, add_generation_prompt=prompt, enable_thinking=False, thinking=False, **tokens
            )
        except Exception as error:  # a template can raise anything
            raise _Unusable(f"fails ({_first_line(error)})") from error

    return render


def _shows_date(source: str, tokens: Mapping[str, str], render: Render) -> bool:
    messages = (("system", SCHEMA), ("user", QUESTION))
    try:
        return render(*messages) != _renderer(source, tokens, ANOTHER_DATE)(*messages)
    except _Unusable:  # no system role
        return render(messages[1]) != _renderer(source, tokens, ANOTHER_DATE)(messages[1])


def _chat_template(model: Path, config: Mapping[str, Any]) -> str | None:
    """The source of a model's chat template, from the first of the places where transformers finds it."""
    path = model / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); copy the model again") from error
    found = read_object(model / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):  # several with names
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) and found else None


def _special_tokens(model: Path, config: Mapping[str, Any]) -> dict[str, str]:
    values = {**read_object(model / "special_tokens_map.json"), **config}
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in values.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _added_tokens(tokenizer: Tokenizer) -> set[str]:
    return {token.content for token in tokenizer.get_added_tokens_decoder().values()}


def _warn_of_foreign_marks(template: PromptTemplate, tokenizer: Tokenizer, model: Path, setting: str) -> None:
    missing = [mark for mark in template.marks if mark not in _added_tokens(tokenizer)]
    if missing:
        number = len(tokenizer.encode(missing[0], add_special_tokens=False).ids)
        console.warning(
            f"{setting} is {template.name}, whose mark {missing[0]!r} is {number} tokens in {model}; the model has not "
            "learned its meaning: auto takes the model's own chat template"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
