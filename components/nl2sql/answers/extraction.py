"""The SQL statement in a model's answer: what encloses it, where it starts, and where SQL ends and prose begins.

A statement ends at a semicolon. Many models write none, and continue with an explanation, the next question, or a token
of their chat template. So a text that does not parse is cut where something begins that cannot be SQL (a sentence, a
label, a tag, another SELECT), provided that what is before it parses. Any other text that does not parse is returned
whole: a truncated or wrong statement stays wrong.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from chatmetrics.components.nl2sql.answers.from_first import select_first
from chatmetrics.components.nl2sql.answers.query_plan import without_plan
from chatmetrics.components.nl2sql.answers.reasoning import without_reasoning
from chatmetrics.components.nl2sql.sql.parsing import is_query
from chatmetrics.components.nl2sql.sql.statements import QUOTED, single_statement

# Longer statements end at a semicolon only; nobody asks for them, and parsing them takes long.
MAX_CHARACTERS = 20_000
MAX_STARTS = 3
MAX_PARSED = 20  # texts that are parsed to find the end of one statement
OTHER_DIALECTS = ("postgres", "mysql", "tsql")

# Every pattern takes linear time on any text: possessive quantifiers (*+, ++) prevent backtracking, and the lookbehinds
# below start a run of parentheses only once.
_FENCE = re.compile(
    r"(?P<fence>```|~~~)[^\S\n]*(?:\w+[^\S\n]*\n|\n|(?:sql|sqlite)\b)?(?P<code>.*?)(?:(?P=fence)|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_JSON = re.compile(r"\{\s*+\"|\[\s*+[{\"]|\A\s*+\"")
_NAME = r"(?:\w++|\"[^\"]*+\"|`[^`]*+`|\[[^\]]*+\])"
_QUERY = (
    r"(?:SELECT\b(?!\s*+[:：])"
    rf"|WITH\s+(?:RECURSIVE\s+)?{_NAME}\s*(?:\([^()]*+\)\s*)?AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?\()"
)
# An answer may also begin with FROM, see `from_first`; in capitals, because prose begins with "from", too.
_FROM_FIRST = rf"(?-i:FROM)\s+(?:{_NAME}|\()"
_FROM_ALONE = re.compile(r"[\s(]*+FROM\b", re.IGNORECASE)  # which sqlglot reads as SELECT *
_STATEMENT = r"(?:INSERT|REPLACE|UPDATE|DELETE|DROP|CREATE|ALTER|PRAGMA|ATTACH|DETACH|EXPLAIN|VALUES|VACUUM)\b"
_PARENTHESES = r"(?:\(++\s*+)?"
# Tried in this order: the whole text is a statement; a line begins with a query; a query is inside a sentence.
_AT_START = re.compile(
    rf"\A[\s`]*+(?P<sql>{_PARENTHESES}(?:(?P<query>{_QUERY}|{_FROM_FIRST})|{_STATEMENT}))", re.IGNORECASE
)
_IN_LINE = re.compile(rf"^(?:[^\S\n]|`)*+(?P<sql>{_PARENTHESES}(?P<query>{_QUERY}))", re.IGNORECASE | re.MULTILINE)
_IN_SENTENCE = re.compile(rf"(?<!\()(?P<sql>\(*+(?P<query>{_QUERY}))")
_IN_ANY_CASE = re.compile(rf"(?<!\()(?P<sql>\(*+(?P<query>{_QUERY}))", re.IGNORECASE)
_ANOTHER = re.compile(rf"{_PARENTHESES}{_QUERY}", re.IGNORECASE)
_ALTERNATIVE = re.compile(rf"or\b[,:]?\s+{_QUERY}", re.IGNORECASE)
# Without this, "select" is a word of the sentence.
_NOT_A_WORD = re.compile(
    r"\bFROM\s++(?!(?:the|this|that|these|those|an?|any|each|one|your|our|my|its)\b)"
    r"|\ASELECT\s*+[^\w\s]|\ASELECT\s++\d",
    re.IGNORECASE,
)

# What ends an inline statement, by the character before it.
_CLOSING = {"`": "`", '"': '"', "'": "'", "*": "*", "{": "}", "“": "”", "‘": "’", "「": "」", "『": "』", "《": "》"}
# What no SQL contains outside quotes: fences, tags, tokens of chat templates, and punctuation that is not ASCII.
_TAG = (
    r"```|~~~|(?<=\n)(?:\"{3}|'{3})|<[|｜]|</|<(?:s|eos|bos|eot|end|pad|unk|br|end_of_turn|end_of_text|start_of_turn)\s*/?>"
    r"|<\w{1,30}>(?=\s*+(?:\Z|<))|\]\]>"
    r"|\[/?(?:SQL|INST|ANSWER|QUERY|END|EOS|DONE|PAD|SEP|CLS|end of text)\]"
)
# The same, but it may be a mistake inside a statement: also comments of other languages, and escapes outside quotes.
_PUNCTUATION = (
    r"(?<=\s)(?:#|//)(?=\s+\w)|\\(?=n\\n|n\s*\Z|end\{|G\b)"
    r"|[\u00a1\u00bf\u200b-\u200f\u2013\u2014\u2018-\u201f\u2026\u2190-\u2bff\u3000-\u303f\uff01-\uff0f\uff1a-\uff20"
    r"\uff3b-\uff40\uff5b-\uff65\U0001f300-\U0001faff]"
)
_CHINESE_LETTER = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # also Japanese and Korean
_CHINESE = re.compile(_CHINESE_LETTER)
_PIECE = re.compile(
    rf"(?P<end>[;；])|(?P<tag>{_TAG})|(?P<mark>{_PUNCTUATION})|{QUOTED}|(?P<open>\()|(?P<close>\))|(?P<line>\n\s*+)"
    rf"|(?P<stop>(?<=[^\s.])[.!?,](?=\s|\Z))|(?P<word>(?<!\w)[^\W_][\w'’]*+|(?<=\d){_CHINESE_LETTER}++)",
    re.DOTALL | re.IGNORECASE,
)
# The words that SQL may continue with.
_KEYWORD = re.compile(
    r"ALL|AND|AS|ASC|BETWEEN|BY|CASE|COLLATE|CROSS|DESC|DISTINCT|ELSE|END|ESCAPE|EXCEPT|EXISTS|"
    r"FETCH|FILTER|FOR|FROM|FULL|GLOB|GROUP|HAVING|ILIKE|IN|INDEXED|INNER|INTERSECT|INTO|IS|ISNULL|"
    r"JOIN|LEFT|LIKE|LIMIT|MINUS|NATURAL|NOT|NOTNULL|NULL|NULLS|OFFSET|ON|OR|ORDER|OUTER|OVER|"
    r"PARTITION|QUALIFY|REGEXP|RIGHT|SELECT|SET|THEN|UNION|USING|VALUES|WHEN|WHERE|WINDOW|WITH",
    re.IGNORECASE,
)
_OPEN_ENDED = re.compile(
    r"(?:[,(+\-/%=<>|]|(?<!\d)\.|\b(?:ALL|AND|AS|BETWEEN|BY|CASE|CROSS|DISTINCT|ELSE|EXCEPT|EXISTS|FROM|GROUP|HAVING|IN"
    r"|INNER|INTERSECT|IS|JOIN|LEFT|LIKE|LIMIT|NOT|OFFSET|ON|OR|ORDER|OUTER|SELECT|THEN|UNION|USING|WHEN|WHERE|WITH))\s*\Z",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"\b(?:FROM|WHERE|GROUP BY|ORDER BY|JOIN|HAVING|LIMIT|UNION)\b")
_LABEL = re.compile(r"[^\W\d_](?:[\w '’/()-]{0,60}[\w)])?(?::(?![:\w])|：)")
_LIST_OR_HEADING = re.compile(
    r"#|\*\*|[-•*>]\s+[`*\"]*+[^\W\d_]|\d{1,2}[.)]\s|-{3,}|={3,}|\||_{3,}|[=-]+>|[}\]]|\[\(|-?\d+(?:\.\d+)?\Z"
    r"|(?:user|assistant|system|human|model|DONE|END|EOF|GO|STOP)\Z"
)
_SENTENCE = re.compile(r"(?P<word>[^\W\d_]++)(?:['’]\w+)?(?:[.!?,…]+(?=\s|\Z)|\s++[`\"'(]?(?P<next>[\w'’-]++)|\s*+\Z)")
_PLAIN_WORD = re.compile(r"[^\W\d_](?:[^\W_]|['’-])*+[,.!?:]*+(?:\s++|\Z)")
_LONE_WORD = re.compile(rf"(?:\n\s*+(?P<word>[A-Z][a-z]++|{_CHINESE_LETTER}++)|\s++{_CHINESE_LETTER}++)\Z")


def sql_from_answer(text: str) -> str:
    """The first SQL statement in a model's answer, without reasoning, Markdown, prose, semicolon and special tokens.

    A truncated or wrong statement is returned as it is. A query plan is left out, and FROM before SELECT is turned into
    SQL's order, so that the answers that `answer_form` writes for training give their SQL.

    Returns:
        The empty string if the answer contains no SQL.
    """
    return select_first(_sql_in(without_plan(without_reasoning(text))))


def _sql_in(answer: str) -> str:
    """The first SQL statement in an answer, without what encloses, precedes and follows it.

    A statement that the answer begins with is preferred, then JSON, then fenced code, then the rest. At these places a
    statement may also begin with FROM; it is returned in that order.

    Returns:
        The empty string if there is no SQL.
    """
    at_start = _AT_START.search(answer)
    if at_start and at_start["query"] and not _is_capitalized(at_start) and (found := _statement(answer, at_start))[1]:
        return found[0]
    if (sql := _in_json(answer)) or (sql := _in_fences(answer)):
        return sql
    return _first_statement(answer)


def _in_fences(answer: str) -> str:
    """The first query in fenced code, or else the first statement."""
    found = [sql for match in _FENCE.finditer(answer) if (sql := _first_statement(match["code"]))]
    return next(filter(_ANOTHER.match, found), "") or next(iter(found), "")


def _in_json(answer: str) -> str:
    """The SQL in a JSON value; the empty string if there is none."""
    start = _JSON.search(answer)
    if start is None:
        return ""
    try:
        # A string may have line breaks, which JSON does not allow.
        value, _ = json.JSONDecoder(strict=False).raw_decode(
            answer, start.end() - 1 if answer[0] == '"' else start.start()
        )
    except (ValueError, RecursionError):
        return ""
    texts = sorted(_texts(value), key=lambda named: ("sql" not in named[0], "query" not in named[0]))
    return next((_first_statement(text) for _, text in texts if _AT_START.match(text) or "```" in text), "")


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a JSON value, with the name of the field that they are in."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, str(key).lower())
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, name)


def _first_statement(text: str) -> str:
    first = ""
    for start in _starts(text):
        statement, is_complete = _statement(text, start)
        is_word = start.re is _IN_ANY_CASE and not _NOT_A_WORD.search(statement)
        if is_complete and not is_word:
            return statement
        if start.re is not _IN_ANY_CASE:
            first = first or statement
            if statement.partition("\n")[0].rstrip()[-1:] not in ".:!?。：！？":
                break  # it is SQL that is wrong, and not a sentence that begins with "select"
    return first


def _starts(text: str) -> Iterator[re.Match[str]]:
    """Where a statement may start, the most likely place first."""
    at_start = _AT_START.search(text)
    if at_start:
        starts = [at_start, *islice(_IN_LINE.finditer(text, at_start.end()), MAX_STARTS)]
        yield from sorted(starts, key=_is_capitalized)
        return
    for pattern in (_IN_LINE, _IN_SENTENCE):
        found = list(islice(pattern.finditer(text), MAX_STARTS))
        if found and (enclosing := _enclosing(text, found[0].start("query"))):
            yield enclosing
        yield from found
        if found:
            return
    yield from islice(_IN_ANY_CASE.finditer(text), MAX_STARTS)


def _enclosing(text: str, place: int) -> re.Match[str] | None:
    """The query of which a place is a subquery: it starts in the middle of a line, and a parenthesis of it is open."""
    for pattern in (_IN_SENTENCE, _IN_ANY_CASE):
        for start in islice(pattern.finditer(text, 0, place), MAX_STARTS):
            if text.count("(", start.start("query"), place) > text.count(")", start.start("query"), place):
                return start
    return None


def _is_capitalized(start: re.Match[str]) -> bool:
    """Whether it is like the first word of a sentence: "Select the names" may be one."""
    return (start["query"] or "")[:6].istitle()


def _statement(text: str, start: re.Match[str]) -> tuple[str, bool]:
    """The statement that starts in a place, and whether it is complete."""
    begin = start.start("sql")
    before, rest = text[:begin], text[begin:]
    closing = _CLOSING.get(before[-1:], "")
    if closing and start["query"] and (enclosed := _enclosed(rest[:MAX_CHARACTERS], closing)):
        return enclosed, True
    end, places = _places(rest)
    statement = rest[:end].strip()
    if closing == "`":
        statement = statement.removesuffix("`").rstrip()
    if not start["query"]:
        return statement, True
    if len(statement) > MAX_CHARACTERS:
        return statement, False
    first_mark = next((place.start() for place in places if place.lastgroup in ("tag", "mark")), len(rest))
    in_sentence = bool(before.rpartition("\n")[2].strip(" \t`"))
    if first_mark == len(rest) and _is_complete(statement):
        return _tidied(statement, in_sentence), True
    ends = _ends(rest[:end], places, in_sentence)
    prefixes = [rest[:place].rstrip() for place in ends if place <= first_mark]
    for dialect in ("sqlite", *OTHER_DIALECTS) if prefixes else ():
        whole = [] if dialect == "sqlite" or first_mark < len(rest) else [statement]
        for prefix in [*whole, *prefixes]:
            if _is_complete(prefix, dialect):
                return _tidied(prefix, in_sentence), True
    return statement, False


def _enclosed(rest: str, closing: str) -> str:
    """The statement up to the character that closes what encloses it; the empty string if none is complete."""
    ends = (match.start() for match in re.finditer(re.escape(closing), rest))
    for end in islice(ends, MAX_PARSED):
        statement = rest[:end].replace("\\n", "\n").replace('\\"', '"') if closing == '"' else rest[:end]
        statement = single_statement(statement).strip()
        if _is_complete(statement):
            return statement
    return ""


def _places(rest: str) -> tuple[int, list[re.Match[str]]]:
    """The place of the semicolon, and the places outside parentheses and quotes where prose may begin."""
    depth = 0
    places: list[re.Match[str]] = []
    for piece in _PIECE.finditer(rest):
        if piece["end"]:
            return piece.start(), places
        depth = max(0, depth + bool(piece["open"]) - bool(piece["close"]))
        if depth == 0 and piece.lastgroup in ("tag", "mark", "line", "stop", "word"):
            places.append(piece)
    return len(rest), places


def _ends(statement: str, places: Iterable[re.Match[str]], in_sentence: bool) -> list[int]:
    """The places where prose begins: first those at the beginning of a line."""
    style = statement.lstrip("( \t\n").partition(" ")[0][:6]
    at_line, within_line = [], []
    for piece in places:
        kind, place = piece.lastgroup, piece.start()
        if kind in ("line", "tag"):
            line = statement[piece.end() if kind == "line" else place :][:200].partition("\n")[0].rstrip()
            is_alternative = _ALTERNATIVE.match(statement, piece.end())
            if kind == "tag" or is_alternative or _is_prose(line, style, piece[0].count("\n") > 1):
                at_line.append(place)
        elif _ends_within_line(piece, statement[place:], style, in_sentence):
            within_line.append(place)
    return list(dict.fromkeys([*at_line[:MAX_PARSED], *within_line[:MAX_PARSED]]))


def _is_prose(line: str, style: str, after_blank_line: bool) -> bool:
    """Whether a line after a statement is not SQL, judging from its beginning.

    Args:
        line: its text.
        style: the first word of the statement: SELECT, select or Select.
        after_blank_line: whether a blank line separates them.
    """
    if not line or re.match(_TAG, line) or re.match(_PUNCTUATION, line):
        return True
    if _LIST_OR_HEADING.match(line) or _ANOTHER.match(line) or _LABEL.match(line):
        return True
    if _CHINESE.match(line):
        return not _has_clause(line, style)
    if line[0] in "\"'([":
        return len(line) > 1 and line[1].isupper() and _is_prose(line[1:], style, after_blank_line)
    sentence = _SENTENCE.match(line)
    if sentence is None:
        return False
    word, following = sentence["word"], sentence["next"] or ""
    is_capitalized = word[0].isupper() and (len(word) == 1 or not word.isupper())
    if _KEYWORD.fullmatch(word):  # "In this query ..."
        is_other_style = style[1:].isupper() or (after_blank_line and style.islower())
        return is_capitalized and is_other_style and _plain_words(line) >= 3
    is_all_words = _plain_words(line) == len(line.split())
    if is_capitalized:  # "Age FROM people" may continue a SELECT list.
        is_clause = following.isupper() and _KEYWORD.fullmatch(following)
        return after_blank_line or not is_clause or (is_all_words and line.endswith("."))
    if word.isupper():
        return after_blank_line and (_plain_words(line) >= 3 or is_all_words)
    if after_blank_line:
        return not _KEYWORD.fullmatch(following)
    return _plain_words(line) >= (3 if line[-1] in ".!?:" else 6)


def _ends_within_line(piece: re.Match[str], following: str, style: str, in_sentence: bool) -> bool:
    """Whether prose begins at a piece in the middle of a line."""
    rest = following[:200].partition("\n")[0].rstrip()
    if piece["mark"]:
        return not _has_clause(rest, style)
    if piece["stop"] == ",":
        after = rest[1:].strip()
        is_clause = _starts_with_keyword(after) or _has_clause(after, style)
        return in_sentence and _plain_words(after) >= 2 and not is_clause
    if piece["stop"]:
        after = following[1:200].strip().partition("\n")[0]
        return _is_prose(after, style, after_blank_line=True) if after else in_sentence
    if _CHINESE.match(rest):
        return not _has_clause(rest, style)
    if _ANOTHER.match(following):
        return True
    if _starts_with_keyword(rest) or _has_clause(rest, style):
        return False
    if in_sentence and _plain_words(rest) == len(rest.split()):
        return True
    words = rest.split()
    return words[0].istitle() and _plain_words(rest) >= 3 and words[1].islower()


def _plain_words(text: str) -> int:
    """How many words a text begins with, with nothing but spaces and punctuation of prose between them."""
    count, place = 0, 0
    while match := _PLAIN_WORD.match(text, place):
        count, place = count + 1, match.end()
        if place == len(text):
            break
    return count


def _starts_with_keyword(text: str) -> bool:
    word = re.match(r"\w+", text)
    return word is not None and _KEYWORD.fullmatch(word[0]) is not None


def _has_clause(line: str, style: str) -> bool:
    """Whether a line has a clause, in capitals if the statement is written in capitals."""
    return bool(_CLAUSE.search(line if style.isupper() else line.upper()))


def _is_complete(statement: str, dialect: str = "sqlite") -> bool:
    if not statement or _OPEN_ENDED.search(statement[-20:]):
        return False
    query = select_first(statement)
    return not _FROM_ALONE.match(query) and is_query(query, dialect)


def _tidied(statement: str, in_sentence: bool) -> str:
    """Without what SQL allows but is prose: the period and parentheses of a sentence, or "Thanks", an alias to SQL."""
    if in_sentence:
        statement = statement.removesuffix(".")
        inner = statement[1:-1].strip()
        return inner if statement.startswith("(") and statement.endswith(")") and _is_complete(inner) else statement
    match = _LONE_WORD.search(statement)
    if match is None or _KEYWORD.fullmatch(match["word"] or ""):
        return statement
    shorter = statement[: match.start()].rstrip()
    is_word = bool(match["word"]) or not _CHINESE.search(shorter)
    return shorter if is_word and _is_complete(shorter) else statement
