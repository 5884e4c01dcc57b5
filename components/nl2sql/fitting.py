"""Making examples: the prompt's three parts, with as much of the schema as the student's tokens allow."""

from dataclasses import replace

from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompt import instruction
from chatmetrics.components.nl2sql.schema import Schema, SchemaForm, fit_schema
from chatmetrics.components.nl2sql.token_counter import TokenCounter


def bare_example(id: str, db_id: str, question: str, sql: str, split: str, query_type: str) -> Example:
    """An example without a schema, whose answer is the query."""
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
    """The example with its schema, pruned where prompt and answer would be more than `cutoff_length` tokens.

    Args:
        example: with the whole schema, rendered once for all questions about a database.
        schema: of its database.
        form: None for a prompt without a schema.
        cutoff_length: most tokens of the whole example, BOS and EOS too.
        counter: counts as the student will.

    Returns:
        None where not even one table fits, or the example without a schema.
    """

    def fits(system: str) -> bool:
        return counter.count(replace(example, system=system)) <= cutoff_length

    if fits(example.system):
        return example
    system = fit_schema(schema, example.question, form, fits) if form and fits("") else None
    return None if system is None else replace(example, system=system)
