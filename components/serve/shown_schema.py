"""What a prompt shows of a database's schema for a question, and why: `chatmetrics schema`."""

from collections.abc import Callable
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.stored_values import StoredValues
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.linking.explanation import explain
from chatmetrics.components.nl2sql.linking.pruning import Pruner
from chatmetrics.components.nl2sql.prompts.prompt import with_evidence
from chatmetrics.components.nl2sql.schema import SchemaForm
from chatmetrics.components.serve.ask import opened_schema


def shown_schema(
    database: Path | str,
    question: str,
    form: SchemaForm,
    sample_values: int,
    tokens: int,
    count_tokens: Callable[[str], int],
    known: Descriptions | None = None,
) -> tuple[str, str]:
    """The text of the schema that a prompt shows, and why it shows that, in lines.

    Args:
        database: an SQLite file, or the address of a database.
        question: the question.
        form: the form of the schema.
        sample_values: as in `Schema.from_sqlite`.
        tokens: the most tokens that the schema may have; 0 for all that it has.
        count_tokens: counts the tokens of a text.
        known: what is known about the database that it does not contain; terms that the question names are compared.

    Raises:
        InputError: the database cannot be read, or not even one table fits.
    """
    whole = opened_schema(database, sample_values, known)
    question = with_evidence(question, known.evidence(question)) if known else question
    found = StoredValues(whole, database).find(question)
    pruner, all_tokens = Pruner(whole, form), count_tokens(whole.render(form))
    is_whole = not tokens or all_tokens <= tokens
    part = whole if is_whole else pruner.prune(question, lambda text: count_tokens(text) - tokens, found)
    if part is None:
        raise InputError(f"{whole.db_id}: not even one table fits into {tokens} tokens; raise --tokens")
    text = part.render(form)
    used = f"{count_tokens(text):,} of {all_tokens:,} tokens"
    return text, f"{explain(pruner.rank(question, found), whole, part)}\n{used}"
