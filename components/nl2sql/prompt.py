"""The prompt of training, evaluation and serving, and the extraction of SQL from an answer."""

import re
import unicodedata

from chatmetrics.components.nl2sql.extraction import sql_in

INSTRUCTION = "Using the database '{db_id}', translate the following natural language question into a SQL query."

# DeepSeek's template (LLaMA-Factory calls it `deepseek3`). The schema comes first, so that a server can cache the
# prefix that all questions about one database share. The tokenizer adds the BOS token.
PROMPT_TEMPLATE = "{system}<｜User｜>{instruction}\n{input}<｜Assistant｜>"

# Tags of a model's reasoning, and those of its final answer where reasoning has no closing tag of its own.
_THOUGHT = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad)"
_REASONING_OPENS = re.compile(rf"<{_THOUGHT}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>", re.IGNORECASE)
_REASONING_CLOSES = re.compile(
    rf"</{_THOUGHT}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>", re.IGNORECASE
)


def instruction(db_id: str) -> str:
    """The instruction for a question about the database `db_id`."""
    return INSTRUCTION.format(db_id=db_id)


def render_prompt(system: str, instruction: str, input: str) -> str:
    """The text that a model continues with SQL, without BOS, which the tokenizer or the server adds.

    The text is normalized to Unicode's NFC. DeepSeek's tokenizer does this itself, but llama.cpp does not.
    """
    text = PROMPT_TEMPLATE.format(system=system, instruction=instruction, input=input)
    return unicodedata.normalize("NFC", text)


def sql_from_answer(text: str) -> str:
    """The first SQL statement in a model's answer, without reasoning, Markdown, prose, semicolon and special tokens.

    A truncated or wrong statement is returned as it is.

    Returns:
        The empty string if the answer contains no SQL.
    """
    return sql_in(_without_reasoning(text))


def _without_reasoning(text: str) -> str:
    # A chat template may put <think> into the prompt, so the closing tag decides. Reasoning that is never closed is
    # not an answer.
    answer = _REASONING_CLOSES.split(text)[-1]
    return _REASONING_OPENS.split(answer, maxsplit=1)[0]
