"""The prompt template: the one object that builds the prompts of training, evaluation and serving."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.nl2sql.prompts.prompt_text import content_text

TemplateName = Literal["auto", "deepseek3", "chatml", "llama3", "gemma", "plain"]

CARD = "dataset_card.json"
FILE = "prompt_template.txt"  # in the folder of a merged model
OWN = "own"  # the name of a template that is none of `TEMPLATES`

_QUESTION = "{instruction}\n{input}"
_FORM = re.compile(
    r"(?P<opening>[^{}]*)"
    r"(?:\{system\}|\{if system\}(?P<before_schema>[^{}]*)\{system\}(?P<after_schema>[^{}]*)\{end\})"
    rf"(?P<before_question>[^{{}}]*){re.escape(_QUESTION)}(?P<after_question>[^{{}}]+)"
    r"(?:\{answer\}(?P<after_answer>[^{}]*))?"
    r"(?:\{special tokens (?P<special_tokens>\[[^{}]*\])\})?"
)
_BRACES = {ord("{"): "\\u007b", ord("}"): "\\u007d"}  # in JSON


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The marks around the schema, the question and the answer.

    An example is

        opening [before_schema SCHEMA after_schema] before_question QUESTION after_question ANSWER after_answer

    without BOS, which the tokenizer or the server adds if its configuration says so. The part in brackets is left out
    without a schema. The schema comes first, so that a server can cache what all questions about a database share.

    `special_tokens` are those of the base's tokenizer that no text may form and that the forms of `content_text` do not
    cover. It is empty for most bases. It is a part of the template, so that it is the same in training and serving.
    """

    opening: str
    before_schema: str
    after_schema: str
    before_question: str
    after_question: str
    after_answer: str
    special_tokens: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text that datasets, adapters and manifests contain; see `text`.

        Raises:
            InputError: The text has another form.
        """
        found = _FORM.fullmatch(text)
        tokens = _string_list(found["special_tokens"] or "[]") if found else None
        if not found or tokens is None:
            expected = "MARK{if system}MARK{system}MARK{end}MARK{instruction}\\n{input}MARK{answer}MARK"
            raise InputError(f"the prompt template is {text!r}, expected the form '{expected}'")
        marks = {name: mark or "" for name, mark in found.groupdict().items() if name != "special_tokens"}
        return cls(**marks, special_tokens=tokens)

    @property
    def text(self) -> str:
        """The template as one text, such as `{system}<｜User｜>{instruction}\\n{input}<｜Assistant｜>`.

        Special tokens are a list in JSON at its end: `{special tokens ["[USR]"]}`.
        """
        schema = f"{self.before_schema}{{system}}{self.after_schema}"
        if self.before_schema or self.after_schema:
            schema = f"{{if system}}{schema}{{end}}"
        answer = f"{{answer}}{self.after_answer}" if self.after_answer else ""
        return (
            f"{self.opening}{schema}{self.before_question}{_QUESTION}{self.after_question}{answer}{self._listed_tokens}"
        )

    @property
    def name(self) -> str:
        """The template's name in `TEMPLATES`, or "own"."""
        marks = replace(self, special_tokens=())
        return next((name for name, template in TEMPLATES.items() if template == marks), OWN)

    @property
    def stop(self) -> str:
        """The text that ends an answer in addition to EOS; empty if only EOS does."""
        return self.after_answer.strip() or self.after_answer

    @property
    def marks(self) -> list[str]:
        """The marks that are meant to be special tokens, such as `<|im_start|>`."""
        return list(dict.fromkeys(re.findall(r"<[^<>\s]+>", self.text.removesuffix(self._listed_tokens))))

    def prompt(self, system: str, instruction: str, input: str) -> str:
        """The text that a model continues with SQL.

        Only the template's own marks become special tokens; see `content_text`.
        """
        question = self.content(f"{instruction}\n{input}")
        return f"{self._schema(system)}{self.before_question}{question}{self.after_question}"

    def content(self, text: str) -> str:
        """A text as a part of a prompt, in which it cannot form a special token; see `content_text`."""
        return content_text(text, self.special_tokens)

    def go(self) -> str:
        """Go template for Ollama, which repeats it for each turn."""
        schema = f"{self.before_schema}{{{{ .System }}}}{self.after_schema}"
        if self.before_schema or self.after_schema:
            schema = f"{{{{ if .System }}}}{schema}{{{{ end }}}}"
        answer = f"{{{{ .Response }}}}{self.after_answer}" if self.after_answer else ""
        return f"{self.opening}{schema}{self.before_question}{{{{ .Prompt }}}}{self.after_question}{answer}"

    def jinja(self) -> str:
        """Jinja chat template for llama.cpp, which renders the same prompt as `go`."""
        schema = f"{self.before_schema!r} + schema.text + {self.after_schema!r}"
        return (
            "{%- set schema = namespace(text='') -%}"
            "{%- for message in messages if message.role == 'system' -%}"
            "{%- set schema.text = schema.text + message.content -%}{%- endfor -%}"
            "{%- for message in messages -%}"
            f"{{%- if message.role == 'user' -%}}{{{{ {self.opening!r} }}}}"
            f"{{%- if schema.text -%}}{{{{ {schema} }}}}{{%- set schema.text = '' -%}}{{%- endif -%}}"
            f"{{{{ {self.before_question!r} + message.content + {self.after_question!r} }}}}"
            "{%- elif message.role == 'assistant' -%}"
            f"{{{{ message.content + {self.after_answer!r} }}}}{{%- endif -%}}{{%- endfor -%}}"
        )

    def before_marked_question(self, system: str) -> str:
        """The prompt up to the first mark after the schema, which is where the texts of questions begin to differ."""
        return self._schema(system).removesuffix(self.after_schema)

    def _schema(self, system: str) -> str:
        return self.opening + (f"{self.before_schema}{self.content(system)}{self.after_schema}" if system else "")

    @property
    def _listed_tokens(self) -> str:
        listed = json.dumps(self.special_tokens, ensure_ascii=False).translate(_BRACES)
        return f"{{special tokens {listed}}}" if self.special_tokens else ""


def _string_list(text: str) -> tuple[str, ...] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return tuple(found) if isinstance(found, list) and all(isinstance(item, str) for item in found) else None


# LLaMA-Factory calls it `deepseek3`. It is the published recipe's template, and that of datasets and manifests without
# one: they are from before there was a choice.
DEEPSEEK3 = PromptTemplate.parse("{system}<｜User｜>{instruction}\n{input}<｜Assistant｜>")
# For base models without a chat template. An untrained one is stopped at the blank line after its query.
PLAIN = PromptTemplate.parse("{if system}{system}\n\n{end}{instruction}\n{input}\n\nSQL:\n{answer}\n\n")
TEMPLATES = {
    "deepseek3": DEEPSEEK3,
    "chatml": PromptTemplate.parse(
        "{if system}<|im_start|>system\n{system}<|im_end|>\n{end}"
        "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    ),
    "llama3": PromptTemplate.parse(
        "{if system}<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>{end}"
        "<|start_header_id|>user<|end_header_id|>\n\n{instruction}\n{input}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{answer}<|eot_id|>"
    ),
    # There is no system turn: the schema is at the start of the user's.
    "gemma": PromptTemplate.parse(
        "<start_of_turn>user\n{if system}{system}\n\n{end}{instruction}\n{input}<end_of_turn>\n"
        "<start_of_turn>model\n{answer}<end_of_turn>\n"
    ),
    "plain": PLAIN,
}


def dataset_template(dataset: Path) -> PromptTemplate:
    """The template that a dataset was made for, from its card; DeepSeek's if the card does not name one.

    Raises:
        InputError: the card cannot be read, or names something else.
    """
    path = dataset / CARD
    if not path.exists():
        return DEEPSEEK3
    try:
        return PromptTemplate.parse(json.loads(path.read_bytes()).get("prompt_template") or DEEPSEEK3.text)
    except (OSError, ValueError, AttributeError, TypeError, InputError) as error:
        raise InputError(f"{path}: its prompt_template cannot be read ({error}); run preprocess again") from error


def merged_template(folder: Path) -> PromptTemplate | None:
    """The template of a model that merge wrote; None for a model that was not trained here.

    Raises:
        InputError: the file of the template cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return PromptTemplate.parse(path.read_text("utf-8"))
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"{path}: cannot be read as a prompt template ({error}); run merge again") from error


def write_merged_template(folder: Path, template: PromptTemplate) -> None:
    """Write a merged model's template into its folder.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        (folder / FILE).write_text(template.text, encoding="utf-8", newline="")
    except OSError as error:
        raise StorageError(f"{folder / FILE}: cannot be written ({error.strerror}); free some space") from error
