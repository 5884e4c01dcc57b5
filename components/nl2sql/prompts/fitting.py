"""Examples whose schema is pruned to the student's token limit."""

from dataclasses import dataclass, replace

from chatmetrics.components.nl2sql.databases.addresses import SQLITE
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.linking.found_values import FindValues, no_values
from chatmetrics.components.nl2sql.linking.pruning import pruner_of
from chatmetrics.components.nl2sql.prompts.prompt import instruction, with_evidence
from chatmetrics.components.nl2sql.prompts.token_counter import TokenCounter
from chatmetrics.components.nl2sql.schema import Schema, SchemaForm


def bare_example(
    id: str,
    db_id: str,
    question: str,
    sql: str,
    split: str,
    query_type: str,
    evidence: str = "",
    dialect: str = SQLITE,
) -> Example:
    """Build an example without a schema; its answer is the query, in the dialect that sqlglot calls so."""
    return Example(
        id=id,
        db_id=db_id,
        question=question,
        sql=sql,
        query_type=query_type,
        split=split,
        system="",
        instruction=instruction(db_id, dialect),
        input=with_evidence(question, evidence),
        output=sql,
        evidence=evidence,
    )


@dataclass(frozen=True, slots=True)
class Fitted:
    """An example that fits, and the schema that its prompt shows, which is the whole one or a part of it."""

    example: Example
    schema: Schema


def fit(
    example: Example,
    schema: Schema,
    form: SchemaForm | None,
    cutoff_length: int,
    counter: TokenCounter,
    find_values: FindValues = no_values,
) -> Example | None:
    """The example of `fit_shown`, without its schema."""
    fitted = fit_shown(example, schema, form, cutoff_length, counter, find_values)
    return fitted.example if fitted else None


def fit_shown(
    example: Example,
    schema: Schema,
    form: SchemaForm | None,
    cutoff_length: int,
    counter: TokenCounter,
    find_values: FindValues = no_values,
) -> Fitted | None:
    """Prune an example's schema if prompt and answer take more than `cutoff_length` tokens; see `Pruner`.

    Args:
        example: an example with the whole schema, rendered once for all questions about a database.
        schema: the schema of its database.
        form: form of the schema in the prompt; None for a prompt without a schema.
        cutoff_length: maximum number of tokens of the whole example, including BOS and EOS.
        counter: counts tokens with the student's tokenizer.
        find_values: finds the values of the database that a question names; called if the schema is pruned.

    Returns:
        The example; None if not even one table fits, or if a prompt without a schema is too long.
    """

    def excess(system: str) -> int:
        return counter.count(replace(example, system=system)) - cutoff_length

    if excess(example.system) <= 0:
        return Fitted(example, schema)
    asked = with_evidence(example.question, example.evidence)
    if not form or excess("") > 0:
        return None
    pruned = pruner_of(schema, form).prune(asked, excess, find_values(asked))
    return Fitted(replace(example, system=pruned.render(form)), pruned) if pruned else None
