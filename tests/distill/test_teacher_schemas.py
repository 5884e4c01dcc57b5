"""The schemas in the teacher's prompts have at most a number of tokens."""

from pathlib import Path

import pytest

from chatmetrics.components.distill.synthesis.synthesis import synthesize
from chatmetrics.components.distill.teacher_schemas import TeacherSchemas
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.schema import Column, Schema, Table
from tests.distill.shop import make_shop, settings
from tests.distill.test_synthesis import Teacher, good

TABLES = tuple(
    Table(f"{kind}_{number}", (Column("id", "INTEGER", 1), Column("name", "TEXT"), Column(f"{kind}_price", "REAL")))
    for kind in ("hotel", "flight", "train", "ship")
    for number in range(250)
)
LARGE = Schema("large", TABLES)


def count(text: str) -> int:
    return len(text) // 4


def test_all_questions_have_the_whole_schema_if_it_fits() -> None:
    tokens = count(LARGE.render("ddl"))
    schemas = TeacherSchemas(settings(schema="ddl", schema_tokens=tokens), lambda db_id: LARGE, count)
    assert schemas.text("large", "ships?") == schemas.text("large", "flights?") == LARGE.render("ddl")
    assert schemas.whole("large") == LARGE


@pytest.mark.parametrize("limit", [500, 4000])
def test_a_question_about_a_thousand_tables_has_a_part_that_fits(limit: int) -> None:
    schemas = TeacherSchemas(settings(schema="ddl", schema_tokens=limit), lambda db_id: LARGE, count)
    for question, named in {"price of flight 77": "flight_77", "names in ship 201": "ship_201"}.items():
        text = schemas.text("large", question)
        assert f"CREATE TABLE {named} (" in text
        assert 0.8 * limit < count(text) <= limit


def test_a_limit_for_which_no_table_fits_is_an_error_that_names_the_setting() -> None:
    schemas = TeacherSchemas(settings(schema_tokens=5), lambda db_id: LARGE, count)
    with pytest.raises(InputError, match=r"^large: not even one table fits distill\.schema_tokens=5; raise it"):
        schemas.text("large", "price of flight 77")


def test_a_request_for_questions_shows_the_tables_that_they_are_about(tmp_path: Path) -> None:
    make_shop(tmp_path)
    wanted = settings(schema="ddl", schema_tokens=260, synthesis={"questions_per_database": 14})
    teacher = Teacher(wanted, good)
    examples, _ = synthesize(tmp_path, [], teacher, wanted, False)
    assert len(examples) == 14
    for request in teacher.requests:
        (_, system), (_, asked) = request.messages
        schema = system.partition("\n\nAbove is")[0]
        assert len(schema) <= 260
        if "Kind of query: single table" in asked:
            about = asked.partition("1. about ")[2].partition("\n")[0]
            assert f"CREATE TABLE {about} (" in schema
