"""The instruction in every prompt, and what is known about a question."""

from chatmetrics.components.nl2sql.databases.addresses import SQLITE, title

INSTRUCTION = "Using the database '{db_id}', translate the following natural language question into a {kind} query."


def instruction(db_id: str, dialect: str = SQLITE) -> str:
    """The instruction for a question about the database `db_id`.

    It names the dialect, as sqlglot calls it, unless that is SQLite's: those prompts are the published ones.
    """
    return INSTRUCTION.format(db_id=db_id, kind="SQL" if dialect == SQLITE else title(dialect))


def with_evidence(question: str, evidence: str) -> str:
    """A question as prompts show it: with what is known about its words, on a line of its own.

    Args:
        question: the question.
        evidence: for example "active customers have status = 2", as BIRD's field of this name; may be empty.
    """
    known = " ".join(evidence.split())
    return f"{question}\nEvidence: {known}" if known else question
