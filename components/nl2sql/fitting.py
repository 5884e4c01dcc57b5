"""Examples whose schema is pruned to the student's token limit."""

from dataclasses import replace

from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompt import instruction
from chatmetrics.components.nl2sql.schema import Schema, SchemaForm, fit_schema
from chatmetrics.components.nl2sql.token_counter import TokenCounter


def bare_example(id: str, db_id: str, question: str, sql: str, split: str, query_type: str) -> Example:
    """Build an example without a schema; its answer is the query."""
    return Example(
        id=id,
        db_id=db_id,
        question=question,
        sql=sql,
        query_type=query_type,
        split=split,
        system="",
        instruction=instruction(db_id),
        input=question,
        output=sql,
    )


def fit(
    example: Example, schema: Schema, form: SchemaForm | None, cutoff_length: int, counter: TokenCounter
) -> Example | None:
    """Prune an example's schema if prompt and answer take more than `cutoff_length` tokens.

    Args:
        example: an example with the whole schema, rendered once for all questions about a database.
        schema: the schema of its database.
        form: form of the schema in the prompt; None for a prompt without a schema.
        cutoff_length: maximum number of tokens of the whole example, including BOS and EOS.
        counter: counts tokens with the student's tokenizer.

    Returns:
        The example; None if not even one table fits, or if a prompt without a schema is too long.
    """

    def fits(system: str) -> bool:
        return counter.count(replace(example, system=system)) <= cutoff_length

    if fits(example.system):
        return example
    system = fit_schema(schema, example.question, form, fits) if form and fits("") else None
    return None if system is None else replace(example, system=system)
