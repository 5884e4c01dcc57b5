"""Prompts that ask the teacher to answer a question.

The system message starts with the schema and depends only on the database, so an endpoint with a prefix cache
processes it once for all questions about that database.
"""

from chatmetrics.components.nl2sql.prompts.prompt import instruction

Messages = tuple[tuple[str, str], ...]

_ANSWER = """Above is the schema of the SQLite database '{db_id}'. You translate questions about it into SQL.
Answer with exactly one SELECT statement in SQLite's dialect, in a fence:
```sql
SELECT ...
```
Use only tables and columns of the schema, spelled as they are there. Select what the question asks for, in the order
in which it asks for it, and nothing else. Use values as they are stored."""


def question_messages(db_id: str, question: str, schema: str) -> Messages:
    """Build the messages that ask one question; its text is the last line, unchanged.

    Args:
        db_id: name of the database.
        question: text of the question, with its evidence if it has any.
        schema: the schema text, from `Schema.render`.
    """
    return ("system", f"{schema}\n\n{_ANSWER.format(db_id=db_id)}"), ("user", f"{instruction(db_id)}\n{question}")
