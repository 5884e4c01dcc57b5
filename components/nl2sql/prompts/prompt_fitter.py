"""Prompts within a token limit: a schema is pruned, and a long question is condensed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.linking.condensing import Condenser
from chatmetrics.components.nl2sql.linking.found_values import FindValues, no_values
from chatmetrics.components.nl2sql.linking.pruning import Pruner
from chatmetrics.components.nl2sql.linking.ranking import SchemaIndex
from chatmetrics.components.nl2sql.prompts.prompt import with_evidence
from chatmetrics.components.nl2sql.schema import Schema, SchemaForm

Excess = Callable[[str, str], float]

QUESTION_SHARE = 1 / 3  # of the tokens for schema and question, that a long question may take
SHORT_QUESTION = 128  # tokens of a question that is not condensed if it fits


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """What a prompt shows.

    Attributes:
        system: the schema as text.
        schema: the schema, or the part of it that is shown.
        question: the question without its evidence, condensed if it was too long.
        evidence: the evidence of the question.
        is_condensed: whether sentences of the question are left out.
        is_longer: whether it has more tokens than the prompts of training, because the question is long.
    """

    system: str
    schema: Schema
    question: str
    evidence: str
    is_condensed: bool = False
    is_longer: bool = False

    @property
    def asked(self) -> str:
        """The question with its evidence."""
        return with_evidence(self.question, self.evidence)


class PromptFitter:
    """Fits questions about one database into a prompt's token limit: the schema is pruned, a long question condensed.

    Args:
        schema: the database's schema.
        form: form of the schema in the prompt; None for a prompt without a schema.
        known: the terms that questions can name.
        find_values: finds the values of the database that a text names; called if something does not fit.

    Attributes:
        whole: the whole schema as text.
    """

    def __init__(
        self,
        schema: Schema,
        form: SchemaForm | None,
        known: Descriptions | None = None,
        find_values: FindValues = no_values,
    ) -> None:
        self._schema, self._form, self._known = schema, form, known or Descriptions()
        self._find_values = find_values
        self.whole = schema.render(form) if form else ""

    def fit(self, question: str, evidence: str, excess: Excess, spare: int = 0) -> FittedPrompt | None:
        """What the prompt for a question shows; None if not even a part of it fits.

        A question of normal length stays as it is, and the schema is pruned. A long question is condensed to
        `QUESTION_SHARE` of the tokens, or to what the whole schema leaves, if that is more.

        Args:
            question: the question.
            evidence: what was given with it; the terms that it names are added.
            excess: by how many tokens a prompt with this schema and question is too long; at most 0 if it fits. It must
                not be less for a longer text.
            spare: tokens that a long question may take in addition, before it is condensed.
        """

        # The same text is counted with many schemas, and its terms are looked up once.
        asked = cache(partial(self._asked, evidence=evidence))

        def over(system: str, text: str) -> float:
            return excess(system, asked(text))

        if over(self.whole, question) <= 0:
            return self._fitted(self._schema, question, evidence)
        limit = self._question_limit(over)
        if limit is None:
            return None
        is_long = over("", question) > limit
        if is_long and spare > 0:
            longer = self.fit(question, evidence, lambda system, text: excess(system, text) - spare)
            return replace(longer, is_longer=True) if longer else None
        kept = self._condenser.condense(question, lambda text: over("", text) - limit) if is_long else question
        if not kept:
            return None
        if over(self.whole, kept) <= 0:
            return self._fitted(self._schema, kept, evidence, is_long)
        pruned = self._pruned(asked(kept), lambda system: over(system, kept))
        return self._fitted(pruned, kept, evidence, is_long) if pruned else None

    def _question_limit(self, over: Excess) -> float | None:
        """By how many tokens a prompt without a schema may be too long; at most 0. None if it cannot be counted."""
        room = -over("", "")
        if not 0 <= room < math.inf:
            return None
        if not self._form:
            return 0.0
        left = -over(self.whole, "")
        return max(room * QUESTION_SHARE, left, min(SHORT_QUESTION, room / 2)) - room

    @cached_property
    def _index(self) -> SchemaIndex:
        return SchemaIndex(self._schema)

    @cached_property
    def _condenser(self) -> Condenser:
        return Condenser(self._index, self._known.terms, self._find_values)

    @cached_property
    def _pruner(self) -> Pruner | None:
        return Pruner(self._schema, self._form, self._index) if self._form else None

    def _pruned(self, asked: str, excess: Callable[[str], float]) -> Schema | None:
        """The part of the schema that fits; None for a prompt without a schema, of which nothing can be left out."""
        return self._pruner.prune(asked, excess, self._find_values(asked)) if self._pruner else None

    def _asked(self, question: str, evidence: str) -> str:
        return with_evidence(question, self._known.evidence(question, evidence))

    def _fitted(self, shown: Schema, question: str, evidence: str, is_condensed: bool = False) -> FittedPrompt:
        system = self.whole if shown is self._schema or not self._form else shown.render(self._form)
        return FittedPrompt(system, shown, question, self._known.evidence(question, evidence), is_condensed)
