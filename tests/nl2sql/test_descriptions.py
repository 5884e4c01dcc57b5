"""Descriptions of databases: what a file of them may contain, and what is an error."""

from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.descriptions import FILE, Descriptions, read_descriptions, write_descriptions


def test_descriptions_are_read_as_they_were_written(tmp_path: Path) -> None:
    known = {
        "a": Descriptions({'odd "table"\n': {"": "x", "列": "价\n格"}}),
        "b": Descriptions({}, (("t", "c", "u", "d"),)),
    }
    write_descriptions(tmp_path, {**known, "nothing": Descriptions()})
    assert read_descriptions(tmp_path) == known


def test_a_dataset_without_descriptions_has_no_file(tmp_path: Path) -> None:
    write_descriptions(tmp_path, {"a": Descriptions()})
    assert not (tmp_path / FILE).exists()
    assert read_descriptions(tmp_path) == {}


def test_descriptions_that_are_too_large_to_be_published_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="17 MiB, more than the 16 MiB"):
        write_descriptions(tmp_path, {"a": Descriptions({"t": {"c": "x" * (17 << 20)}})})


@pytest.mark.parametrize(
    "content", [b"[", b"[]", b'{"a": 1}', b'{"a": {}}', b'{"a": {"columns": [], "foreign_keys": []}}', b"\xff",
    b'{"a": {"columns": {}, "foreign_keys": [["t", "c"]]}}', b'{"a": {"columns": {"t": "c"}, "foreign_keys": []}}'],
)  # fmt: skip
def test_a_malformed_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InputError, match=rf"{FILE}: malformed"):
        read_descriptions(tmp_path)
