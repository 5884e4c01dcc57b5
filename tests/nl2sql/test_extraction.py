"""The SQL in answers as models write them: what encloses it, precedes it and follows it."""

import json
import os
import random
from pathlib import Path

import pytest
import sqlglot

from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer

SQL = "SELECT name FROM animal WHERE id = 1"
LINES = "SELECT name FROM animal\nWHERE id = 1"
# All of these answers are SQL, with something around it.
ANSWERS = {
    "plain": SQL,
    "semicolon": f"{SQL};",
    "semicolons": f"{SQL};;\n;",
    "fenced": f"```sql\n{SQL}\n```",
    "fenced, prose around": f"Here it is:\n```sql\n{SQL};\n```\nIt returns one name.",
    "fence in capitals": f"```SQL\n{SQL};\n```",
    "fence with a space": f"``` sql\n{SQL}\n```",
    "fence of another language": f"```postgresql\n{SQL}\n```",
    "fence on one line": f"```postgresql {SQL} ```",
    "fence of tildes": f"~~~sql\n{SQL}\n~~~",
    "fence of four": f"````sql\n{SQL}\n````",
    "fence never closed": f"```sql\n{SQL}",
    "fence opened by the prompt": f"{SQL}\n```\nExplanation: we select it.",
    "fence closed in the line": f"{SQL}```",
    "prose in a fence": f"```sql\n{SQL}\n\nThis selects it.\n```",
    "two fences": f"```sql\n{SQL}\n```\n\nOr:\n```sql\nSELECT 2\n```",
    "the schema in a fence": f"```sql\nCREATE TABLE animal (id);\n```\n```sql\n{SQL}\n```",
    "the schema first": f"CREATE TABLE animal (id)\n```sql\n{SQL}\n```",
    "reasoning": f"<think>Names, so SELECT name FROM animal.</think>\n{SQL}",
    "thinking tag": f"<thinking>SELECT everything? No.</thinking>\n{SQL}",
    "reasoning tag": f"<reasoning>SELECT 2;</reasoning>{SQL}",
    "bracketed reasoning": f"[THINK]SELECT 2[/THINK]{SQL}",
    "reasoning between triangles": f"◁think▷SELECT 2◁/think▷{SQL}",
    "channels": f"<|channel|>analysis<|message|>SELECT 2<|end|><|start|>assistant<|channel|>final<|message|>{SQL}",
    "comment first": f"-- the first animal\n{SQL}",
    "prose after, with semicolon": f"{SQL};\n\nThis returns the first animal's name.",
    "prose after a blank line": f"{SQL}\n\nThis returns the first animal's name.",
    "prose on the next line": f"{SQL}\nExplanation: the first animal.",
    "prose on the next line without a label": f"{SQL}\nThe query returns one name.",
    "prose with a semicolon": f"{SQL}\n\nThis query's result is the animal's name; it's one row.",
    "a contraction": f"{SQL}\nIt's the first one",
    "a note": f"{SQL}\n\nNote that ids start at 1.",
    "a sentence that begins with a keyword": f"{SQL}\nIn this query, we filter by id.",
    "a paragraph that begins with a keyword": f"{SQL}\n\nFrom the table animal we take one.",
    "a sentence in small letters": f"{SQL}\nwhich returns the name of the first animal in the table",
    "prose in parentheses": f"{SQL}\n(This returns the name.)",
    "one word": f"{SQL}\nDone.",
    "prose in the same line": f"{SQL}. This returns it.",
    "prose in the same line without a period": f"{SQL} This query returns it.",
    "a dash": f"{SQL} — it returns the name",
    "an emoji": f"{SQL} 😀",
    "a list": f"{SQL}\n\n- name: the name\n- id: the id",
    "a numbered list": f"1. {SQL}\n2. SELECT 2",
    "a heading": f"### SQL\n{SQL}\n### Explanation\nIt returns it.",
    "a table": f"{SQL}\n\n| name |\n|---|\n| cat |",
    "the result": f"{SQL}\nOutput:\ncat",
    "an arrow": f"{SQL}\n=> cat",
    "Chinese semicolon": f"{SQL}；",
    "Chinese period": f"答案是：{SQL}。",
    "Chinese prose": f"{SQL}\n\n这条查询返回第一只动物的名字。",
    "Chinese label": f"{SQL}\n解释：第一只动物",
    "Chinese prose in the same line": f"{SQL} 这条查询返回名字",
    "Chinese comma": f"{SQL}，返回名字",
    "Chinese prose around inline code": f"查询语句：`{SQL}`，它返回名字。",
    "Chinese quotes": f"使用“{SQL}”即可",
    "Chinese prose with names": f"{SQL}\n\n该查询会返回 animal 表中 id 为 1 的记录。",
    "repeated": f"{SQL}\n{SQL}\n{SQL}",
    "repeated with semicolons": f"{SQL}; {SQL};",
    "a made-up question": f"{SQL}\n\nQuestion: How many animals?\nSELECT count(*) FROM animal",
    "a made-up dialogue": f"{SQL}\n\nQ: How many?\nA: SELECT count(*) FROM animal",
    "end token as text": f"{SQL}<|im_end|>",
    "turn tokens as text": f"{SQL}<|eot_id|><|start_header_id|>user<|end_header_id|>",
    "full-width end token": f"{SQL}<｜end▁of▁sentence｜>",
    "end tag": f"{SQL}</s>",
    "end of turn": f"{SQL}<end_of_turn>",
    "bracketed end": f"{SQL} [/INST]",
    "an unknown tag": f"{SQL}<end_of_sentence>\n<sep>",
    "a role": f"{SQL}\nuser\nHow many?",
    "CDATA": f"<sql><![CDATA[{SQL}]]></sql>",
    "prose that names a clause": f"{SQL}\nUses WHERE to filter.",
    "a paragraph that names a join": f"{SQL}\n\nThe LEFT JOIN keeps all animals.",
    "another SELECT that is prose": f"{SQL}\n\nSELECT is used to get the name.",
    "options": f"Option 1: {SQL}\nOption 2: SELECT 2",
    "select in prose": f"First, let's SELECT the rows. Then:\n\n{SQL}",
    "prose that is SQL before a fence": f"To solve this we SELECT name FROM the table:\n\n```sql\n{SQL}\n```",
    "double backticks": f"``{SQL}``",
    "a Java string": f'String sql = "{SQL}";',
    "YAML": f"sql: |\n  {SQL}\nnote: x",
    "a tool call": f'<tool_call>{{"name": "run", "arguments": {{"sql": "{SQL}"}}}}</tool_call>',
    "a fence in JSON": json.dumps({"answer": f"```sql\n{SQL}\n```"}),
    "Chinese parentheses": f"{SQL}（第一只动物）",
    "closing tag": f"<sql>{SQL}</sql>",
    "tags in lines": f"<answer>\n{SQL}\n</answer>",
    "tags and an explanation": f"<SQL>{SQL};</SQL><explanation>SELECT</explanation>",
    "inline code in a sentence": f"Use `{SQL}` to see it.",
    "inline code in a list": f"* `{SQL}`",
    "bold": f"**{SQL}**",
    "label": f"SQL: {SQL}",
    "bold label": f"**SQL:** {SQL}",
    "Chinese label before": f"SQL查询：{SQL}",
    "in a sentence": f"Use {SQL} to see it.",
    "in a sentence with a clause": f"You can run {SQL}, which returns its name.",
    "in parentheses": f"I would use ({SQL}) here.",
    "at the end of a sentence": f"The query is {SQL}.",
    "quoted in a sentence": f'To get it, run "{SQL}" in the shell.',
    "a sentence that begins with select": f"Select the name of the first animal:\n{SQL}",
    "a sentence that is SQL": f"Select the animals from the table.\n{SQL}",
    "a sentence that is SQL, and a fence": f"Select the animals from the table.\n```sql\n{SQL}\n```",
    "quoted": f'"{SQL}"',
    "JSON": json.dumps({"sql": SQL}),
    "JSON with line breaks in it": json.dumps({"sql": f"{SQL};\n"}),
    "JSON with more fields": json.dumps({"question": "Select the first animal", "sql": SQL}),
    "JSON with an explanation": json.dumps({"explanation": "We SELECT it.", "query": SQL}),
    "nested JSON": json.dumps({"result": {"statement": SQL}, "confidence": 0.9}),
    "JSON array": json.dumps([{"sql": SQL}]),
    "JSON in a fence": f'```json\n{{"sql": "{SQL}"}}\n```',
    "JSON after prose": f'Here is the JSON:\n{{"sql": "{SQL}"}}',
    "JSON never closed": f'{{"sql": "{SQL}"',
    "a Python dict": f"{{'sql': '{SQL}'}}",
    "a Python call": f'cursor.execute("{SQL}")',
    "a Python string": f'query = """\n{SQL}\n"""',
    "a shell": f"sqlite> {SQL};\ncat",
    "boxed": f"\\boxed{{{SQL}}}",
    "a quotation": f"> {SQL}",
    "a comment of another language": f"{SQL} # the first animal",
    "a comment of C": f"{SQL} // the first animal",
    "a list of names in backticks": f"{SQL}\n\n* `name`: the name\n* `id`: the key",
    "rows as Python prints them": f"{SQL}\n[('cat',)]",
    "a number as result": f"{SQL}\n42",
    "another query after or": f"{SQL}\n\nOR\n\nSELECT 2",
    "repeated in the same line": f"{SQL} {SQL} {SQL}",
    "end of a batch": f"{SQL}\nGO",
    "end of a here-document": f"{SQL}\nEOF",
    "llama.cpp's end": f"{SQL} [end of text]",
    "LaTeX": f"\\begin{{verbatim}}\n{SQL}\n\\end{{verbatim}}",
    "escaped line breaks": f"{SQL}\\n\\nThis query returns it.",
    "an escaped line break": f"{SQL}\\n",
    "a Spanish question": f"{SQL}\n¿Es correcto?",
    "characters without width": f"\u200b{SQL}\u200b",
}
# Queries of several lines, of which one begins with the SELECT of a subquery.
NESTED = [
    "WITH first AS (\n  SELECT id FROM animal\n)\nSELECT name FROM first JOIN animal USING (id)",
    "SELECT name FROM animal WHERE id IN (\n  SELECT id FROM vet\n  WHERE name = '('\n)",
    "select name from animal where id in (\nselect id from vet\n)",
]
BEFORE = ["Answer: ", "A: ", "<sql>", "1. ", "Sure! Here is the query: ", "sqlite> ", "The query is `", "\ufeff", "> "]
# Statements that hold what elsewhere ends one.
STATEMENTS = [
    "WITH first AS (SELECT name FROM animal WHERE id = 1) SELECT * FROM first",
    'WITH "first animal" AS (SELECT name FROM animal WHERE id = 1) SELECT * FROM "first animal"',
    "WITH `first animal` AS (SELECT 1) SELECT * FROM `first animal`",
    "WITH [first animal] (id) AS (SELECT 1) SELECT id FROM [first animal]",
    "SELECT name AS [a;b] FROM animal WHERE id = 1",
    "SELECT `a;b` FROM `animal` WHERE `id` = 1",
    'SELECT "a;b" FROM "animal"',
    "SELECT name FROM animal WHERE name = 'a; b' -- x; y\nAND id = 1",
    "SELECT name /* ; */ FROM animal",
    "SELECT name FROM animal WHERE note = 'It''s here.\n\nThis returns; all' AND id = 1",
    "SELECT name FROM animal WHERE note = '```' OR note = '</s><|im_end|>' OR note = '这；'",
    "SELECT name\nFROM animal\n\nWHERE id = 1\n\nORDER BY name",
    "SELECT a FROM t\nUNION\nSELECT b FROM u",
    "(SELECT 1) UNION (SELECT 2)",
    "SELECT 姓名 AS 名 FROM 学生 WHERE 年龄 > 3",
    "SELECT 学生.姓名 名 FROM 学生",
    "SELECT name::text FROM animal WHERE id = 1",
    "SELECT $$a;b$$ AS x FROM animal",
    "SELECT $q$it's; x$q$",
    "SELECT name FROM animal WHERE name ILIKE 'a%' LIMIT 3",
    "SELECT name FROM animal WHERE born > now() - interval '1 day'",
    "SELECT name FROM animal WHERE tags @> ARRAY['a;b']",
    "SELECT TOP 5 name FROM animal ORDER BY id",
]
AFTERWARDS = [
    "",
    ";",
    "\n\nThis query returns the name.",
    "\nExplanation: it's the first.",
    "<|im_end|>",
    "；",
    "\n这条查询返回名字。",
]
# Wrong answers that must not become right ones.
WRONG = [
    "SELECT name FROM animal WHERE",
    "SELECT name FROM animal WHERE name = 'Le",
    "SELECT name FROM animal WHERE id IN (SELECT id",
    "SELECT name FROM (\nSELECT name FROM animal",
    "SELECT name FROM animal WHERE id = (SELECT max(id) FROM animal\n\nThis returns it.",
    "SELECT name FROM animal WHERE\n\nThis returns the name.",
    "SELECT T1.name FROM animal AS T1 WHERE T1.",
    "SELECT name FROM animal WHRE id = 1",
    "SELECT name FROM animal\nWHRE id = 1",
    "SELECT name FROM animal\nwere id = 1",
    "SELECT name FROM animal\nWhere id = = 1",
    "SELECT name\nage FROM animal",
    "SELECT Name\nAge FROM Animal",
    "SELECT name,\nFROM animal WHERE = 1",
    "SELECT count(*)，name FROM animal",
    "SELECT name FROM animal LIMIT 1 ORDER BY id",
    "SELECT name FROM animal\nLIMIT 1\nORDER BY id",
    "SELECT name FROM animal GROUP name",
    "SELECT name FROM animal JON vet ON vet.id = animal.id",
    "SELECT name FROM animal WHERE name = 'it's'",
    "SELECT name FROM animal WHERE NOT EXISTS SELECT id FROM vet",
    "SELECT name FROM animal WHERE id > SELECT max(id) FROM vet",
    "SELECT name FROM animal UNION SELECT SELECT name FROM vet",
    "SELECT name FROM animal\\nWHERE id = = 1",
]
NO_SQL = [
    "<think>SELECT 1</think>",
    "<think>SELECT 1</think>\nI cannot answer.",
    "<Thinking>SELECT 2 and",
    "<think>SELECT 1;\n```sql\nSELECT 1\n```",
    "I cannot select that data.",
    "Please select one of the tables.",
    "I cannot answer this, please select another question.",
    "The question is ambiguous; select a column from the schema first.",
    "There is no such table; with this schema it is impossible.",
    "无法回答。",
    '{"sql": null}',
    '{"error": "cannot select"}',
    "```\nnothing\n```",
]


@pytest.mark.parametrize("form", ANSWERS)
def test_a_statement_ends_where_sql_ends(form: str) -> None:
    assert sql_from_answer(ANSWERS[form]) == SQL


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("statement", NESTED)
def test_a_subquery_at_the_start_of_a_line_is_not_the_statement(statement: str, before: str) -> None:
    assert sql_from_answer(f"{before}{statement}") == statement
    assert sql_from_answer(f"{before}{statement};\n\nThis returns it.") == statement


@pytest.mark.parametrize("statement", NESTED[:2])
def test_a_truncated_query_is_not_replaced_by_its_subquery(statement: str) -> None:
    truncated = statement.rpartition(")")[0].rstrip()
    assert sql_from_answer(f"Answer: {truncated}") == truncated


def test_prose_that_begins_with_a_keyword_ends_a_statement_in_small_letters() -> None:
    lower = SQL.lower()
    assert sql_from_answer(f"Final answer: {lower}\n\nFor more help see the docs.") == lower


def test_line_breaks_in_json_are_those_of_the_statement() -> None:
    assert sql_from_answer(json.dumps({"sql": LINES})) == LINES
    assert sql_from_answer(json.dumps({"sql": LINES})[:-1]) == LINES


@pytest.mark.parametrize("afterwards", AFTERWARDS)
@pytest.mark.parametrize("statement", STATEMENTS)
def test_quotes_comments_and_other_dialects_stay_whole(statement: str, afterwards: str) -> None:
    assert sql_from_answer(statement + afterwards) == statement


@pytest.mark.parametrize("answer", WRONG)
def test_wrong_sql_is_not_repaired(answer: str) -> None:
    assert sql_from_answer(answer) == answer


@pytest.mark.parametrize("answer", NO_SQL)
def test_an_answer_without_sql_gives_none(answer: str) -> None:
    assert sql_from_answer(answer) == ""


def test_truncated_json_gives_truncated_sql() -> None:
    assert sql_from_answer('{"sql": "SELECT name FROM animal WHERE') == "SELECT name FROM animal WHERE"


@pytest.mark.parametrize("nested", ["{", "[", "CASE WHEN ", "NOT ", "SELECT (", "x ->> .", "? ", "WITH a AS ("])
def test_malformed_sql_is_returned_as_it_is(nested: str) -> None:
    answer = "SELECT " + (nested * 5000)[:5000] + "\n\nThis is it."
    assert sql_from_answer(answer) == answer


@pytest.fixture(scope="module")
def queries() -> list[str]:
    if "CHATMETRICS_SPIDER_DIR" not in os.environ:
        pytest.skip("CHATMETRICS_SPIDER_DIR is not set")
    spider = Path(os.environ["CHATMETRICS_SPIDER_DIR"])
    files = [spider / f"{name}.json" for name in ("train_spider", "train_others", "dev")]
    items = [item for file in files for item in json.loads(file.read_bytes())]
    return sorted({item["query"].strip().rstrip("; \n") for item in items})


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "```sql\n{}\n```",
        "{};",
        "{}\n\nThis query returns the names; it's sorted.",
        "{}\n这条查询返回所有歌手的名字。",
        "Use `{}` to see it.",
        "The answer is {}. It returns the names.",
    ],
)
def test_every_gold_query_of_spider_is_found_in_an_answer(form: str, queries: list[str]) -> None:
    # Half of the queries, drawn for each form; test_prompt.py has two forms of all of them.
    drawn = random.Random(form).sample(queries, len(queries) // 4)
    assert [query for query in drawn if sql_from_answer(form.replace("{}", query)) != query] == []


def test_a_gold_query_of_spider_that_is_cut_anywhere_stays_cut(queries: list[str]) -> None:
    changed = []
    for query in random.Random(1).sample(queries, 100):
        for token in sqlglot.tokenize(query, read="sqlite"):
            cut = query[: token.end + 1]
            changed += [] if sql_from_answer(cut) == cut else [cut]
    assert changed == []
