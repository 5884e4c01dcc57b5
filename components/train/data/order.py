"""The optimizer steps of a run, as its settings make them."""

from functools import partial

from chatmetrics.components.train.data.packing import packing
from chatmetrics.components.train.data.steps import Steps, by_length, in_runs
from chatmetrics.components.train.data.token_cache import TokenizedExamples
from chatmetrics.components.train.settings import TrainSettings


def optimizer_steps(
    settings: TrainSettings, examples: TokenizedExamples, attention_tokens: float, processes: int
) -> Steps:
    """The examples in steps of as many as the recipe says, whatever is computed at once.

    Args:
        settings: the recipe's `train` section.
        examples: of an epoch.
        attention_tokens: see `packing`.
        processes: that share a step.
    """
    examples_per_step = settings.examples_per_step
    if settings.group_by_length and not settings.packing:
        order = partial(by_length, examples.lengths, examples_per_step)
    else:
        order = partial(in_runs, examples.groups, settings.questions_per_schema)
    return Steps(examples, examples_per_step, processes, order, packing(settings, attention_tokens), settings.seed)
