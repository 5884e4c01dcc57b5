"""The prompt of training, evaluation and serving, and the extraction of SQL from an answer."""

import re
import unicodedata

INSTRUCTION = "Using the database '{db_id}', translate the following natural language question into a SQL query."

# DeepSeek's template (LLaMA-Factory calls it `deepseek3`). The schema comes first, so that a server can cache the
# prefix that all questions about one database share. The tokenizer adds the BOS token.
PROMPT_TEMPLATE = "{system}<｜User｜>{instruction}\n{input}<｜Assistant｜>"

_FENCE = re.compile(r"```[^\S\n]*(?:\w+[^\S\n]*\n|\n|(?:sql|sqlite)\b)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
# Every pattern takes linear time on any model output: possessive quantifiers (*+, ++) prevent backtracking, and the
# lookbehinds below start a run of parentheses only once.
_QUERY = (
    r"(?:SELECT\b|WITH\s+(?:RECURSIVE\s+)?[\w\"`\[\]]+\s*(?:\([^()]*+\)\s*)?AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?\()"
)
_STATEMENT = r"(?:INSERT|REPLACE|UPDATE|DELETE|DROP|CREATE|ALTER|PRAGMA|ATTACH|DETACH|EXPLAIN|VALUES|VACUUM)\b"
_PARENTHESES = r"(?:\(++\s*+)?"
# Tried in this order: the whole answer is a statement; a line begins with a query; a query is inside a sentence.
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
    """The text that a model continues with SQL, without BOS, which the tokenizer or the server adds.

    The text is normalized to Unicode's NFC. DeepSeek's tokenizer does this itself, but llama.cpp does not.
    """
    text = PROMPT_TEMPLATE.format(system=system, instruction=instruction, input=input)
    return unicodedata.normalize("NFC", text)


def sql_from_answer(text: str) -> str:
    """The first SQL statement in a model's answer, without reasoning, Markdown, preceding prose and semicolon.

    Returns:
        The empty string if the answer contains no SQL.
    """
    answer = _without_reasoning(text)
    fenced = (_first_statement(block) for block in _FENCE.findall(answer))
    return next(filter(None, fenced), "") or _first_statement(answer)


def _without_reasoning(text: str) -> str:
    # A chat template may put <think> into the prompt, so the closing tag decides. Reasoning that is never closed is
    # not an answer.
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
