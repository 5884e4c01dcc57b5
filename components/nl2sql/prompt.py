"""The one prompt that training, evaluation and serving share, and how SQL is read back from an answer."""

import re
import unicodedata

INSTRUCTION = "Using the database '{db_id}', translate the following natural language question into a SQL query."

# DeepSeek's template (LLaMA-Factory calls it `deepseek3`). The schema comes first, so that a server can keep the
# prefix that all questions about one database share. The BOS token is the tokenizer's business.
PROMPT_TEMPLATE = "{system}<｜User｜>{instruction}\n{input}<｜Assistant｜>"

_FENCE = re.compile(r"```[^\S\n]*(?:\w+[^\S\n]*\n|\n|(?:sql|sqlite)\b)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
# Every pattern takes linear time on whatever a model writes: runs of one kind are taken whole (*+), and begun once.
_QUERY = (
    r"(?:SELECT\b|WITH\s+(?:RECURSIVE\s+)?[\w\"`\[\]]+\s*(?:\([^()]*+\)\s*)?AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?\()"
)
_STATEMENT = r"(?:INSERT|REPLACE|UPDATE|DELETE|DROP|CREATE|ALTER|PRAGMA|ATTACH|DETACH|EXPLAIN|VALUES|VACUUM)\b"
_PARENTHESES = r"(?:\(++\s*+)?"
# Tried in this order: the answer is a statement, a line of it is a query, a query stands somewhere in a sentence.
_STARTS = (
    re.compile(rf"\A[\s`]*+(?P<sql>{_PARENTHESES}(?:{_QUERY}|{_STATEMENT}))", re.IGNORECASE),
    re.compile(rf"^(?:[^\S\n]|`)*+(?P<sql>{_PARENTHESES}{_QUERY})", re.IGNORECASE | re.MULTILINE),
    re.compile(rf"(?<!\()(?P<sql>\(*+{_QUERY})"),
    re.compile(rf"(?<!\()(?P<sql>\(*+{_QUERY})", re.IGNORECASE),
)
_QUOTED_OR_END = re.compile(r"'[^']*'|\"[^\"]*\"|--[^\n]*|/\*.*?(?:\*/|\Z)|(?P<end>;)", re.DOTALL)


def instruction(db_id: str) -> str:
    """The instruction for a question about the database `db_id`."""
    return INSTRUCTION.format(db_id=db_id)


def render_prompt(system: str, instruction: str, input: str) -> str:
    """The text a model continues with SQL, without BOS: the tokenizer or the server puts that in front.

    It is in Unicode's NFC, as DeepSeek's tokenizer makes it; llama.cpp would take the decomposed form as it is.
    """
    text = PROMPT_TEMPLATE.format(system=system, instruction=instruction, input=input)
    return unicodedata.normalize("NFC", text)


def sql_from_answer(text: str) -> str:
    """The first SQL statement of a model's answer, without reasoning, Markdown, prose before it and semicolon.

    Returns the empty string when the answer holds no SQL.
    """
    answer = _without_reasoning(text)
    fenced = (_first_statement(block) for block in _FENCE.findall(answer))
    return next(filter(None, fenced), "") or _first_statement(answer)


def _without_reasoning(text: str) -> str:
    # The prompt may have opened <think> itself, so the closing tag alone decides; a thought never closed is no answer.
    _, closed, answer = text.rpartition("</think>")
    return answer if closed else text.partition("<think>")[0]


def _first_statement(text: str) -> str:
    start = next(filter(None, (pattern.search(text) for pattern in _STARTS)), None)
    if start is None:
        return ""
    begin = start.start("sql")
    statement = text[begin:]
    end = next((match.start() for match in _QUOTED_OR_END.finditer(statement) if match["end"]), len(statement))
    statement = statement[:end].strip()
    inline_code = text[:begin].endswith("`")
    return statement.removesuffix("`").rstrip() if inline_code else statement
