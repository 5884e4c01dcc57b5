"""The exact text of the prompt, and the extraction of SQL from answers."""

import json
import os
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3


def test_the_instruction_is_the_published_one() -> None:
    assert instruction("concert_singer") == (
        "Using the database 'concert_singer', translate the following natural language question into a SQL query."
    )


def test_the_schema_comes_first_and_is_not_interpreted() -> None:
    schema, question = "CREATE TABLE t (a TEXT -- {input} %s\n);", "多少{a}?"
    assert DEEPSEEK3.prompt(schema, "Do it.", question) == f"{schema}<｜User｜>Do it.\n{question}<｜Assistant｜>"


@pytest.mark.parametrize(
    ("answer", "sql"),
    [
        pytest.param("SELECT 1", "SELECT 1", id="bare"),
        pytest.param(" SELECT 1 ;\n", "SELECT 1", id="semicolon"),
        pytest.param("<think>SELECT 2;</think>\n\nSELECT 1", "SELECT 1", id="reasoning"),
        pytest.param("I could SELECT 2</think>SELECT 1", "SELECT 1", id="reasoning opened by the prompt"),
        pytest.param("<think>SELECT 2 and so on", "", id="reasoning never closed"),
        pytest.param("```sql\nSELECT 1;\n```\nThat is all.", "SELECT 1", id="fence"),
        pytest.param("```SELECT 1```", "SELECT 1", id="fence on one line"),
        pytest.param("```sqlite\nSELECT 1", "SELECT 1", id="fence never closed"),
        pytest.param("First ```\nfoo\n``` then ```sql\nSELECT 1\n```", "SELECT 1", id="fence without SQL before"),
        pytest.param("`SELECT a FROM b`", "SELECT a FROM b", id="inline code"),
        pytest.param("SELECT `a` FROM `b`", "SELECT `a` FROM `b`", id="backtick names"),
        pytest.param("Here is the query: SELECT a FROM b; hope it helps", "SELECT a FROM b", id="prose around"),
        pytest.param("To select the names:\nSELECT name FROM x", "SELECT name FROM x", id="select in prose"),
        pytest.param(
            "SELECT ';' AS \";\" -- ;\n, 1; SELECT 2", "SELECT ';' AS \";\" -- ;\n, 1", id="quoted semicolons"
        ),
        pytest.param("with t as (select 1) select * from t; x", "with t as (select 1) select * from t", id="with"),
        pytest.param("DROP TABLE x; SELECT 1", "DROP TABLE x", id="not a query, for the executor to refuse"),
        pytest.param("I cannot answer that.", "", id="no SQL"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_the_first_statement_is_found(answer: str, sql: str) -> None:
    assert sql_from_answer(answer) == sql


@pytest.mark.parametrize(
    ("piece", "begins"),
    [
        ("```", ""),
        ("``` ", ""),
        ("<think>", ""),
        ("(", ""),
        ("(\n", ""),
        ("\n", ""),
        (" ", ""),
        ("'", ""),
        ("WITH a (", ""),
        ("WITH a AS (", "WITH a AS ("),
        ("SELECT 1 /*", "SELECT 1"),
        ("SELECT '", "SELECT"),
    ],
)
def test_a_hundred_kilobytes_of_any_text_are_read_in_linear_time(piece: str, begins: str) -> None:
    # In quadratic time, one of these would take minutes.
    sql = sql_from_answer((piece * 100_000)[:100_000] + "x")
    assert sql.startswith(begins) and bool(sql) == bool(begins)


@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_every_gold_query_of_spider_is_extracted_unchanged() -> None:
    spider = Path(os.environ["CHATMETRICS_SPIDER_DIR"])
    items = [item for name in ("train_spider", "dev") for item in json.loads((spider / f"{name}.json").read_bytes())]
    queries = [item["query"].strip().rstrip("; \n") for item in items]
    assert len(queries) == 8034
    assert [query for query in queries if sql_from_answer(f"Sure:\n```sql\n{query};\n```") != query] == []
    assert [query for query in queries if sql_from_answer(query + ";") != query] == []


def test_a_decomposed_question_gives_the_prompt_of_the_composed_one() -> None:
    assert DEEPSEEK3.prompt("", "instruction", "cafe\u0301") == DEEPSEEK3.prompt("", "instruction", "caf\u00e9")
