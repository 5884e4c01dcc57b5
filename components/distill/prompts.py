"""What the teacher is told to make it answer a question.

The schema comes first in the system message, which depends on nothing but the database and the task, so that an
endpoint with a prefix cache reads it once for all questions.
"""

from chatmetrics.components.nl2sql.prompt import instruction

Messages = tuple[tuple[str, str], ...]

_ANSWER = """Above is the schema of the SQLite database '{db_id}'. You translate questions about it into SQL.
TeacherAnswer with exactly one SELECT statement in SQLite's dialect, in a fence:
```sql
SELECT ...
```
Use only tables and columns of the schema, spelled as they are there. Select what the question asks for, in the order
in which it asks for it, and nothing else. Use values as they are stored."""


def question_messages(db_id: str, question: str, schema: str) -> Messages:
    """The conversation in which a question is answered; the question is the last line as it stands.

    Args:
        db_id: name of the database.
        question: the words.
        schema: as `Schema.render` gives it.
    """
    return ("system", f"{schema}\n\n{_ANSWER.format(db_id=db_id)}"), ("user", f"{instruction(db_id)}\n{question}")
