"""The tags around a model's reasoning, which comes before its answer."""

import re

# Tags of a model's reasoning, and those of its final answer where reasoning has no closing tag of its own.
_THOUGHT = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad)"
REASONING_OPENS = re.compile(rf"<{_THOUGHT}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>", re.IGNORECASE)
REASONING_CLOSES = re.compile(
    rf"</{_THOUGHT}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>", re.IGNORECASE
)


def without_reasoning(text: str) -> str:
    """The part of a model's text that is its answer; empty if the reasoning never ends."""
    # A chat template may put <think> into the prompt, so the closing tag decides. Reasoning that is never closed is
    # not an answer.
    answer = REASONING_CLOSES.split(text)[-1]
    return REASONING_OPENS.split(answer, maxsplit=1)[0]
