"""The same records are read from every form of file, and other files are named by their form."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.record_files import field_name, read_records

RECORDS = [
    {"question": 'How many "shops", and\nwhere?', "sql": "SELECT 1; SELECT 2", "db_id": "shop"},
    {"question": "多少|几个\t?", "sql": "SELECT ','", "db_id": "shop"},
]


def csv_of(delimiter: str, end: str = "\r\n") -> str:
    rows = [list(RECORDS[0]), *(list(record.values()) for record in RECORDS)]
    return "".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) + end for row in rows)


FORMS = {
    "array.json": json.dumps(RECORDS),
    "indented array.json": json.dumps(RECORDS, indent=2),
    "lines.jsonl": "\n".join(map(json.dumps, RECORDS)) + "\n\n",
    "lines.json": "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS),
    "indented.json": "\n".join(json.dumps(record, indent=1) for record in RECORDS),
    "indented.jsonl": "\n\n".join(json.dumps(record, indent="\t") for record in RECORDS) + "\n",
    "array.jsonl": json.dumps(RECORDS),
    "lines.txt": "\n".join(map(json.dumps, RECORDS)),
    **{f"{name}.csv": csv_of(delimiter) for name, delimiter in (("comma", ","), ("semicolon", ";"), ("bar", "|"))},
    "tab.tsv": csv_of("\t", "\n"),
    "tab.txt": csv_of("\t"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_has_the_same_records(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(FORMS[name].encode(encoding))
    assert [record.content for record in read_records(tmp_path / name)] == RECORDS


def test_a_record_is_located_by_line_index_or_row(tmp_path: Path) -> None:
    def places(name: str) -> list[tuple[str, int]]:
        (tmp_path / name).write_text(FORMS[name], "utf-8")
        return [(record.where, record.number) for record in read_records(tmp_path / name, "mine")]

    assert places("array.json") == [("mine[0]", 0), ("mine[1]", 1)]
    assert places("lines.jsonl") == [("mine:1", 1), ("mine:2", 2)]
    assert places("indented.json") == [("mine:1", 1), ("mine:6", 6)]
    assert places("comma.csv") == [("mine:3", 1), ("mine:4", 2)]  # the line in which the row ends


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"a": 1}\n{"a": }\n', ":2: not JSON (Expecting value at line 1, column 7)"),
        ("a.json", b'{\n"a": 1\n}\n{\n"a": \n}\n', ":4: not JSON (Expecting value at line 6, column 1)"),
        ("a.json", b'{"a": 1},\n{"a": 2}\n', ":1: not JSON (Expecting value at line 1, column 9)"),
        ("a.json", b"{" * 100_000, ":1: not JSON"),
        ("a.json", b'{"a":' * 100_000, ":1: JSON is nested too deeply"),
        (
            "a.csv",
            b"question\nHow many?\n",
            ":1: the header has one column, 'question'; separate columns with a comma, a ",
        ),
        ("a.csv", b"a;b;a\n1;2;3\n", ":1: the header has the column 'a' twice"),
        (
            "a.csv",
            b"a;b\n1;2;3\n",
            ":2: more values than the header has columns; quote values that contain a semicolon",
        ),
        ("a.csv", b"a,b\n1," + b"x" * 200_000, ":2: not valid CSV (field larger than field limit"),
        ("a.csv", b"x" * 200_000 + b",b\n1,2", ":1: not valid CSV (field larger than field limit"),
        ("pred.sql", b"SELECT 1\nSELECT 2\n", ": SQL without questions"),
        ("a.parquet", b"PAR1\x15\x04", ": a Parquet file; convert it"),
        ("a.xlsx", b"PK\x03\x04\x14\x00", ": a ZIP archive or an Excel workbook"),
        ("a.json", gzip.compress(b"[]", mtime=0), ": compressed with gzip; unpack it"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\n", ": a pointer of git-lfs"),
        ("a.csv", "a,é\n".encode("latin-1"), ": not UTF-8 text (byte 2)"),
    ],
)
def test_another_form_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(read_records(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}{message}")
    assert "\n" not in str(caught.value)


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    for content in ("", " \n", "[]"):
        (tmp_path / "a.csv").write_text(content)
        assert list(read_records(tmp_path / "a.csv")) == []


def test_a_field_is_found_however_it_is_written() -> None:
    assert field_name({" SQL ": "x"}, ["sql"]) == " SQL "
    assert field_name({"SQL": "upper", "sql": "lower"}, ["sql"]) == "sql"
    assert field_name({"sql": {"select": []}, "query": "x"}, ["sql", "query"]) == "query"
    assert field_name({"sql": None}, ["sql", "query"]) == "sql"
    assert field_name({"other": "x"}, ["sql", "query"]) is None


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"question": f"{number}", "other": "x" * 1000}) + "\n" for number in range(20_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(path)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    finally:
        tracemalloc.stop()


def test_a_malformed_line_and_byte_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2\n')
    with pytest.raises(InputError, match=r"mine\.jsonl:2: not JSON \(Expecting ',' delimiter at line 1, column 8\)"):
        list(read_records(path))
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(InputError, match=r"mine\.jsonl: not UTF-8 text \(byte 16\); save it as UTF-8"):
        list(read_records(path))


@pytest.mark.parametrize("text", ['{"a": %s}\n', '[{"a": %s}]', '{\n"a": %s\n}'])
def test_a_number_of_thousands_of_digits_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text % ("9" * 5000), encoding="utf-8")
    with pytest.raises(InputError, match=r"mine.json.*: JSON that cannot be read \(Exceeds the limit"):
        list(read_records(tmp_path / "mine.json"))
