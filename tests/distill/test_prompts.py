"""The teacher's prompts."""

from chatmetrics.components.distill.prompts import question_messages
from chatmetrics.components.distill.synthesis.prompts import synthesis_messages
from chatmetrics.components.distill.synthesis.question_plan import Cell
from chatmetrics.components.nl2sql.sql.query_type import QUERY_TYPES

SCHEMA = "【DB_ID】 shop\n# Table: item {x}"


def test_the_question_is_the_last_line_and_the_system_message_depends_on_the_database_only() -> None:
    (system, first), (user, asked) = question_messages("shop", "How many {items}?", SCHEMA)
    assert (system, user) == ("system", "user")
    assert first.startswith(SCHEMA) and "SQLite" in first and "```sql" in first
    assert asked.splitlines()[-1] == "How many {items}?"
    assert "'shop'" in asked
    other = question_messages("shop", "Which?", SCHEMA)
    assert other[0] == (system, first)


def test_a_synthesis_prompt_has_number_topics_and_questions_to_avoid() -> None:
    cells = [
        Cell("2-3 table join", "Chinese", ("sale", "item"), ("sale.item_id = item.id",)),
        Cell("2-3 table join", "Chinese", ("sale", "city"), ()),
    ]
    (_, first), (_, asked) = synthesis_messages("shop", SCHEMA, cells, ["有多少商品?"])
    assert first.startswith(SCHEMA) and "'shop'" in first and '[{"question": "...", "sql": "..."}' in first
    assert "Make up 2 questions" in asked and "2-3 table join" in asked and "Chinese" in asked
    assert "1. about sale, item, joined by sale.item_id = item.id\n2. about sale, city\n" in asked
    assert asked.endswith("- 有多少商品?")
    assert "again" not in synthesis_messages("shop", SCHEMA, cells, [])[1][1]


def test_every_query_type_has_a_synthesis_prompt() -> None:
    for query_type in QUERY_TYPES:
        ((_, _), (_, asked)) = synthesis_messages("shop", SCHEMA, [Cell(query_type, "English", ("item",), ())], [])
        assert f"Kind of query: {query_type}" in asked
