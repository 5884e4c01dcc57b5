"""The instruction in every prompt."""

INSTRUCTION = "Using the database '{db_id}', translate the following natural language question into a SQL query."


def instruction(db_id: str) -> str:
    """The instruction for a question about the database `db_id`."""
    return INSTRUCTION.format(db_id=db_id)
