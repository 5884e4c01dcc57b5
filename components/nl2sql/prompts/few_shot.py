"""Few-shot prompts: training questions with their gold SQL between the schema and the question."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.sql.similarity import question_similarity, words_of
from chatmetrics.components.nl2sql.sql.statements import single_statement

Choice = Literal["random", "similar"]
Choose = Callable[[Example], Sequence[Example]]


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """The example whose prompt also shows other questions with their gold queries.

    They are part of the example's `input`, so that everything up to and including the schema stays as it is, and a
    server can still cache that prefix.
    """
    if not shots:
        return example
    shown = "".join(f"Question: {shot.input}\nSQL: {single_statement(shot.sql).strip()}\n\n" for shot in shots)
    return replace(example, input=f"{shown}Question: {example.input}\nSQL:")


def shots_from(training: Sequence[Example], number: int, choice: Choice, seed: int) -> Choose:
    """The function that chooses `number` training questions for an example, in the order of the prompt.

    Args:
        training: the training examples; of those with the same question only the first counts.
        number: number of questions.
        choice: "random" draws with the seed, the same questions for every example; "similar" takes those with the most
            words in common with the example's question, the most similar one last.
        seed: of "random".

    The example's own question is never chosen.

    Raises:
        InputError: there are too few training questions.
    """
    distinct = {(example.db_id, example.question): example for example in reversed(training)}
    candidates = list(reversed(distinct.values()))
    if number and len(candidates) <= number:
        raise InputError(
            f"evaluate.few_shot is {number}, but the dataset has only {len(candidates)} training questions; lower it"
        )
    drawn = random.Random(seed).sample(candidates, number + 1) if choice == "random" and number else []
    words = [words_of(example.question) for example in candidates] if choice == "similar" else []

    def is_other(shot: Example, example: Example) -> bool:
        return (shot.db_id, shot.question) != (example.db_id, example.question)

    def choose(example: Example) -> list[Example]:
        if choice == "random":
            return [shot for shot in drawn if is_other(shot, example)][:number]
        own = words_of(example.question)
        # sorted() is stable: of equally similar questions the first ones are chosen.
        ranked = sorted(range(len(candidates)), key=lambda index: -question_similarity(words[index], own))
        similar = [candidates[index] for index in ranked if is_other(candidates[index], example)]
        return similar[:number][::-1]

    return choose
