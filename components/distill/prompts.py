"""Prompts that ask the teacher to answer a question.

The system message starts with the schema and depends only on the database, so an endpoint with a prefix cache
processes it once for all questions about that database.
"""

from chatmetrics.components.nl2sql.databases.addresses import SQLITE, title
from chatmetrics.components.nl2sql.prompts.prompt import instruction

Messages = tuple[tuple[str, str], ...]

_ANSWER = """Above is the schema of the {kind} database '{db_id}'. You translate questions about it into SQL.
Answer with exactly one SELECT statement in {kind}'s dialect, in a fence:
```sql
SELECT ...
```
Use only tables and columns of the schema, spelled as they are there. Select what the question asks for, in the order
in which it asks for it, and nothing else. Use values as they are stored."""


def question_messages(db_id: str, question: str, schema: str, dialect: str = SQLITE) -> Messages:
    """Build the messages that ask one question; its text is the last line, unchanged.

    Args:
        db_id: name of the database.
        question: text of the question, with its evidence if it has any.
        schema: the schema text, from `Schema.render`.
        dialect: the database's, as sqlglot names it.
    """
    answer = _ANSWER.format(db_id=db_id, kind=title(dialect))
    return ("system", f"{schema}\n\n{answer}"), ("user", f"{instruction(db_id, dialect)}\n{question}")
