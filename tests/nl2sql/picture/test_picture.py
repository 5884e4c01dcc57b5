"""A schema as an SVG: readable, the same for the same schema, and safe whatever its names are."""

import os
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from chatmetrics.components.nl2sql.descriptions import Descriptions, DiscoveredJoin
from chatmetrics.components.nl2sql.linking.found_values import FoundValue
from chatmetrics.components.nl2sql.picture.content import ShownPart
from chatmetrics.components.nl2sql.picture.picture import draw_schema
from chatmetrics.components.nl2sql.schema import Column, ForeignKey, Schema, Table
from tests.nl2sql.picture.drawn import SVG, Drawing

SPIDER = os.environ.get("CHATMETRICS_SPIDER_DIR", "")
HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><svg onload=alert(1)>",
    "a\x00b\x1b[31m\ufffe",
    "]]>&lt;&amp;",
    "x" * 10_000,
    "酒店" * 500,
    "\u202egnp.exe",
    "اسم الجدول",
    "e\u0301" * 40,
    "\ud800",
    " ",
    "👩‍👩‍👧" * 20,
    "﷽" * 30,
)


def key(table: str, column: str, referenced: str, constraint: int = 0, to: str = "id") -> ForeignKey:
    return ForeignKey(table, column, referenced, to, constraint)


def table(name: str, *columns: str, kind: str = "") -> Table:
    return Table(name, (Column("id", "INTEGER", 1), *(Column(column, "TEXT") for column in columns)), kind)


HOTELS = Schema(
    "hotel",
    (
        table("城市", "名称"),
        table("hotel", "name", "stars", "城市_id", *(f"c{n}" for n in range(20))),
        table("room", "type", "hotel_id"),
        Table("stay", (Column("room", "INT", 1), Column("night", "DATE", 2), Column("guest", "varchar(200)"))),
        table("bill", "room", "night"),
        table("staff", "boss_id"),
        table("best", kind="view"),
    ),
    (
        key("hotel", "城市_id", "城市"),
        key("room", "hotel_id", "hotel"),
        key("stay", "room", "room"),
        key("bill", "room", "stay", 1, "room"),
        key("bill", "night", "stay", 1, "night"),
        key("staff", "boss_id", "staff"),
    ),
)


def large_schema(tables: int, seed: int = 0, keys: float = 0.9) -> Schema:
    """Tables of which most refer to one shortly before, or to one of three that much refers to."""
    generator = random.Random(seed)
    names = [f"table_{number}" for number in range(tables)]
    found = []
    for number in range(1, tables):
        if generator.random() < keys:
            near = max(0, number - 1 - int(generator.expovariate(1 / 20)))
            found.append(key(names[number], "a", names[generator.choice([near, near, generator.randrange(3)])]))
    return Schema("large", tuple(table(name, "a", "b") for name in names), tuple(found))


def test_every_table_and_key_is_there() -> None:
    drawing = Drawing.read(draw_schema(HOTELS))
    drawing.check()
    assert {box.title for box in drawing.boxes} == {table.name for table in HOTELS.tables}
    assert drawing.texts[0].content == "hotel with 7 tables, 38 columns, 5 foreign keys"
    assert sorted(tooltip for *_, tooltip in drawing.lines) == [
        "bill.room = stay.room AND bill.night = stay.night",
        "hotel.城市_id = 城市.id",
        "room.hotel_id = hotel.id",
        "staff.boss_id = staff.id",
        "stay.room = room.id",
    ]
    assert "view" in drawing.box("best").style.split()


def test_keys_come_first_and_the_other_columns_are_counted() -> None:
    lines = Drawing.read(draw_schema(HOTELS)).box("hotel").lines
    assert lines[:6] == ["PK", "id", "INTEGER", "FK", "城市_id", "TEXT"]
    assert lines[-1] == "… 16 more"
    stay = Drawing.read(draw_schema(HOTELS)).box("stay").lines
    assert stay == ["PK FK", "room", "INT", "PK", "night", "DATE", "guest", "varchar"]


def test_a_question_shows_what_it_names_and_what_is_left_out() -> None:
    shown = ShownPart(
        "北京有多少 rooms?",
        HOTELS.prune(["城市", "hotel", "room"]),
        relevant={"城市", "hotel"},
        scores={"城市": 3.04, "hotel": 1.0},
        values={("城市", "名称"): [FoundValue("城市", "名称", "北京", "北京")]},
    )
    drawing = Drawing.read(draw_schema(HOTELS, shown))
    drawing.check()
    assert drawing.texts[1].content == "北京有多少 rooms?"
    city = drawing.box("城市")
    assert city.style.split() == ["box", "main"] and "3.0" in city.lines
    assert city.lines[city.lines.index("名称") :][2] == "= 北京"
    assert drawing.box("room").style == "box" and "left" in drawing.box("bill").style
    styles = {tooltip: style.split()[1:] for style, _, tooltip in drawing.lines}
    assert styles["hotel.城市_id = 城市.id"] == ["path"] and styles["room.hotel_id = hotel.id"] == []
    assert styles["stay.room = room.id"] == ["dim"]


def test_a_name_that_is_cut_is_complete_in_its_tooltip() -> None:
    long = "the_name_of_a_table_that_is_longer_than_its_box"
    root = ElementTree.fromstring(draw_schema(Schema("x", (table(long, f"{long}_id"), table("short")))))
    boxes = root.findall(f".//{SVG}svg")
    assert boxes[0].findtext(f"{SVG}title") == long and boxes[1].find(f".//{SVG}title") is None
    assert [text.findtext(f"{SVG}title") for text in boxes[0] if len(text)] == [f"{long}_id"]


@pytest.mark.skipif(not SPIDER, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_spiders_schemas_are_drawn_with_all_tables() -> None:
    for path in sorted(Path(SPIDER, "database").glob("*/*.sqlite")):
        schema = Schema.from_sqlite(path)
        drawing = Drawing.read(draw_schema(schema))
        drawing.check()
        assert {box.title for box in drawing.boxes} == {table.name for table in schema.tables}


def test_discovered_joins_are_dotted_and_have_their_score() -> None:
    join = DiscoveredJoin("staff", "id", "hotel", "c3", 0.871, "same name")
    drawing = Drawing.read(draw_schema(replace(HOTELS, discovered=(join,))))
    drawing.check()
    styles = {tooltip: style for style, _, tooltip in drawing.lines}
    assert styles["staff.id = hotel.c3 (discovered, 0.87)"] == "line dots" and drawing.labels == ("0.87",)
    assert "c3" in drawing.box("hotel").lines
    assert any("dotted" in text.content for text in drawing.texts)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_escaped_and_stay_in_their_boxes(name: str) -> None:
    tables = (Table(name, (Column(name, name, 1), Column("a", name)), "virtual table (fts5)"), table("b", name))
    schema = Schema(name, tables, (key("b", name, name, to=name),))
    shown = ShownPart(name, schema, {name}, {name: 12.5}, {(name, name): [FoundValue(name, name, name, name)]})
    joined = replace(schema, discovered=(DiscoveredJoin("b", "id", name, "a", 0.5, name),))
    for svg in (draw_schema(schema), draw_schema(joined, shown)):
        svg.encode()
        Drawing.read(svg).check()
        root = ElementTree.fromstring(svg)
        assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
            *("svg", "g", "title", "style", "rect", "path", "text")
        }
        attributes = [(name, value) for element in root.iter() for name, value in element.items()]
        assert not [name for name, _ in attributes if name.startswith("on") or "href" in name]
        assert len(svg) < 12_000 and all(letter.isprintable() or letter == "\n" for letter in svg)


def test_nothing_refers_to_anything_outside() -> None:
    """So it can be part of a page whose content security policy allows nothing."""
    svg = draw_schema(HOTELS)
    assert not re.search(r"href|url\(|@import|script|foreignObject|style=|<!", svg)
    assert re.findall(r"https?:[^\"]*", svg) == ["http://www.w3.org/2000/svg"]


def test_a_screen_reader_gets_a_title() -> None:
    root = ElementTree.fromstring(draw_schema(HOTELS))
    assert root.get("role") == "img" and root.get("aria-label", "").startswith("Schema hotel with 7 tables")
    assert root.findtext(f"{SVG}title") == root.get("aria-label")


def test_values_of_private_columns_are_not_drawn() -> None:
    tables = (Table("guest", (Column("id", "INT", 1), Column("level", "enum('gold','secret')", samples=("secret",)))),)
    private = Schema("hotel", tables).described_by(Descriptions(private={"guest": ["level"]}))
    found = {("guest", "level"): [FoundValue("guest", "level", "secret", "secret")]}
    shown = ShownPart("secret?", private, {"guest"}, {"guest": 1.0}, found)
    svg = draw_schema(private, shown)
    assert "= secret" not in svg and "gold" not in svg and "level" in svg


@pytest.mark.parametrize("seed", range(30))
def test_boxes_and_lines_never_overlap(seed: int) -> None:
    generator = random.Random(seed)
    schema = large_schema(generator.randint(1, 40), seed)
    names = [table.name for table in schema.tables]
    more = [key(generator.choice(names), "b", generator.choice(names)) for _ in range(generator.randint(0, 40))]
    wide = tuple(
        table(
            name,
            *(f"column_{n}" for n in range(generator.randint(0, 12))),
            "a",
            "b",
            kind=generator.choice(["", "view"]),
        )
        for name in names
    )
    Drawing.read(draw_schema(Schema("x", wide, (*schema.foreign_keys, *more)))).check()


def test_a_large_schema_is_drawn_by_cluster() -> None:
    drawing = Drawing.read(draw_schema(large_schema(400)))
    drawing.check()
    assert 4 < len(drawing.boxes) <= 41
    tables = [line for box in drawing.boxes for line in box.lines if line.endswith("columns")]
    assert sum(int(line.split()[0]) for line in tables) == 400
    assert sum(int(line.split()[2]) for line in tables) == 1200
    assert drawing.lines and all("join" in tooltip for *_, tooltip in drawing.lines)


def test_tables_that_one_refers_to_are_one_cluster() -> None:
    star = [table("fact"), *(table(f"dimension_{n}", "fact_id") for n in range(300))]
    keys = tuple(key(f"dimension_{n}", "fact_id", "fact") for n in range(300))
    drawing = Drawing.read(draw_schema(Schema("star", (*star, table("alone")), keys)))
    assert [box.title for box in drawing.boxes] == ["fact", "other tables"]
    assert drawing.boxes[0].lines[0] == "301 tables, 601 columns"


def test_discovered_joins_make_clusters_too() -> None:
    """Of a database that declares no foreign keys, nothing else is known."""
    schema = large_schema(400)
    joins = (
        DiscoveredJoin(k.table, k.column, k.referenced_table, k.referenced_column, 0.9, "") for k in schema.foreign_keys
    )
    drawing = Drawing.read(draw_schema(Schema("x", schema.tables, discovered=tuple(joins))))
    assert len(drawing.boxes) > 4 and len(drawing.boxes) == len(Drawing.read(draw_schema(schema)).boxes)


def test_of_a_large_schema_the_shown_tables_are_drawn_in_full() -> None:
    schema = large_schema(400)
    shown = ShownPart("?", schema.prune(["table_7", "table_8"]), {"table_7"}, {"table_7": 2.0})
    drawing = Drawing.read(draw_schema(schema, shown))
    drawing.check()
    assert "PK" in drawing.box("table_7").lines and "PK" in drawing.box("table_8").lines
    others = [box for box in drawing.boxes if box.title not in ("table_7", "table_8")]
    assert others and all("left" in box.style for box in others)
    listed = sum(int(line.split()[0]) for box in others for line in box.lines if line.endswith("columns"))
    assert listed == 398


@pytest.mark.parametrize("keys", [0.0, 0.5, 1.0, "all"])
def test_three_thousand_tables_are_small_and_fast(keys: float | str) -> None:
    schema = large_schema(3000, keys=keys if isinstance(keys, float) else 1.0)
    if keys == "all":
        generator = random.Random(1)
        pairs = [generator.sample(schema.tables, 2) for _ in range(10_000)]
        schema = Schema("dense", schema.tables, tuple(key(a.name, "a", b.name) for a, b in pairs))
    start = time.perf_counter()
    svg = draw_schema(schema)
    assert time.perf_counter() - start < 2
    assert len(svg.encode()) < 200_000
    Drawing.read(svg).check()


def test_the_same_schema_gives_the_same_bytes() -> None:
    found = {("城市", "名称"): [FoundValue("城市", "名称", "北京", "北京")]}
    shown = ShownPart("?", HOTELS, {"hotel", "room", "城市"}, {"hotel": 1.0}, found)
    assert draw_schema(HOTELS, shown) == draw_schema(HOTELS, shown)
    assert draw_schema(large_schema(400)) == draw_schema(large_schema(400))


def test_a_table_without_keys_and_a_schema_with_one_table_are_drawn() -> None:
    drawing = Drawing.read(draw_schema(Schema("one", (Table("t", (Column("a", ""),)),))))
    drawing.check()
    assert drawing.box("t").lines == ["a"]
