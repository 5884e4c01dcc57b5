"""What a prompt shows of a database's schema for a question, and why: `chatmetrics schema`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.stored_values import StoredValues
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.linking.explanation import explain
from chatmetrics.components.nl2sql.linking.pruning import Pruner
from chatmetrics.components.nl2sql.linking.ranking import Ranking
from chatmetrics.components.nl2sql.picture.content import ShownPart
from chatmetrics.components.nl2sql.picture.picture import draw_schema
from chatmetrics.components.nl2sql.prompts.prompt import with_evidence
from chatmetrics.components.nl2sql.schema import Schema, SchemaForm
from chatmetrics.components.serve.ask import opened_schema


@dataclass(frozen=True, slots=True)
class ShownSchema:
    """The part of a schema that a prompt shows.

    Attributes:
        question: the question; empty for the whole schema.
        whole: the whole schema.
        part: the part of it that is shown.
        ranking: the ranking of its tables and columns.
        text: the text of the part, as in a prompt.
        reasons: why that is shown, in lines.
    """

    question: str
    whole: Schema
    part: Schema
    ranking: Ranking
    text: str
    reasons: str

    @property
    def picture(self) -> str:
        """The schema as the text of an SVG file, which shows the part if there is a question."""
        if not self.question:
            return draw_schema(self.whole)
        ranking = self.ranking
        relevant = frozenset(ranking.tables[: ranking.relevant])
        return draw_schema(self.whole, ShownPart(self.question, self.part, relevant, ranking.scores, ranking.values))


def shown_schema(
    database: Path | str,
    question: str,
    form: SchemaForm,
    sample_values: int,
    tokens: int,
    count_tokens: Callable[[str], int],
    known: Descriptions | None = None,
) -> ShownSchema:
    """What a prompt shows of a database's schema, and why.

    Args:
        database: an SQLite file, or the address of a database.
        question: the question; empty for the whole schema.
        form: the form of the schema.
        sample_values: as in `Schema.from_sqlite`.
        tokens: the most tokens that the schema may have; 0 for all that it has.
        count_tokens: counts the tokens of a text.
        known: what is known about the database that it does not contain; terms that the question names are compared.

    Raises:
        InputError: the database cannot be read, or not even one table fits.
    """
    whole = opened_schema(database, sample_values, known)
    asked = with_evidence(question, known.evidence(question)) if known else question
    found = StoredValues(whole, database).find(asked)
    pruner, all_tokens = Pruner(whole, form), count_tokens(whole.render(form))
    is_whole = not tokens or all_tokens <= tokens
    part = whole if is_whole else pruner.prune(asked, lambda text: count_tokens(text) - tokens, found)
    if part is None:
        raise InputError(f"{whole.db_id}: not even one table fits into {tokens} tokens; raise --tokens")
    text = part.render(form)
    used = f"{count_tokens(text):,} of {all_tokens:,} tokens"
    ranking = pruner.rank(asked, found)
    return ShownSchema(question, whole, part, ranking, text, f"{explain(ranking, whole, part)}\n{used}")
