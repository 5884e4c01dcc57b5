"""Examples within a token limit, and examples without a schema."""

from dataclasses import dataclass, replace

from chatmetrics.components.nl2sql.databases.addresses import SQLITE
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.prompt import instruction, with_evidence
from chatmetrics.components.nl2sql.prompts.prompt_fitter import PromptFitter
from chatmetrics.components.nl2sql.prompts.token_counter import TokenCounter
from chatmetrics.components.nl2sql.schema import Schema


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
class FittedExample:
    """An example that fits, the schema that its prompt shows, and whether its question was condensed."""

    example: Example
    schema: Schema
    is_condensed: bool = False


def fit_example(
    example: Example, fitter: PromptFitter, evidence: str, cutoff_length: int, counter: TokenCounter
) -> FittedExample | None:
    """The example with a prompt that fits `cutoff_length` tokens together with its answer.

    Args:
        example: an example with its question and answer.
        fitter: that of its database.
        evidence: what was given with the question.
        cutoff_length: maximum number of tokens of the whole example, including BOS and EOS.
        counter: counts tokens with the student's tokenizer.

    Returns:
        None if not even one table fits, or if a prompt without a schema is too long.
    """

    def excess(system: str, asked: str) -> int:
        return counter.count(replace(example, system=system, input=asked)) - cutoff_length

    fitted = fitter.fit(example.question, evidence, excess)
    if fitted is None:
        return None
    shown = replace(example, system=fitted.system, input=fitted.asked, evidence=fitted.evidence)
    return FittedExample(shown, fitted.schema, fitted.is_condensed)
