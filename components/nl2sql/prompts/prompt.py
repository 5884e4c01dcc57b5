"""The instruction in every prompt, and what is known about a question."""

INSTRUCTION = "Using the database '{db_id}', translate the following natural language question into a SQL query."


def instruction(db_id: str) -> str:
    """The instruction for a question about the database `db_id`."""
    return INSTRUCTION.format(db_id=db_id)


def with_evidence(question: str, evidence: str) -> str:
    """A question as prompts show it: with what is known about its words, on a line of its own.

    Args:
        question: the question.
        evidence: for example "active customers have status = 2", as BIRD's field of this name; may be empty.
    """
    known = " ".join(evidence.split())
    return f"{question}\nEvidence: {known}" if known else question
