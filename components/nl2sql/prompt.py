"""The instruction in every prompt, and the extraction of SQL from an answer."""

import re

from chatmetrics.components.nl2sql.extraction import sql_in

INSTRUCTION = "Using the database '{db_id}', translate the following natural language question into a SQL query."

# Tags of a model's reasoning, and those of its final answer where reasoning has no closing tag of its own.
_THOUGHT = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad)"
REASONING_OPENS = re.compile(rf"<{_THOUGHT}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>", re.IGNORECASE)
REASONING_CLOSES = re.compile(
    rf"</{_THOUGHT}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>", re.IGNORECASE
)


def instruction(db_id: str) -> str:
    """The instruction for a question about the database `db_id`."""
    return INSTRUCTION.format(db_id=db_id)


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
    answer = REASONING_CLOSES.split(text)[-1]
    return REASONING_OPENS.split(answer, maxsplit=1)[0]
