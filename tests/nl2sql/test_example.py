"""Dataset files: reading, writing, and errors for malformed lines."""

import json
import resource
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.nl2sql.example import Example, read_examples, write_examples

EXAMPLE = Example(
    id="1",
    db_id="酒店",
    question="2024年的订单量?\n\u2028 \U0001f3e8",
    sql="SELECT count(*) FROM t WHERE a = '\"'",
    query_type="aggregate",
    split="train",
    system="",
    instruction="i",
    input="2024年的订单量?",
    output="SELECT 1",
)


def test_examples_are_read_as_they_were_written(tmp_path: Path) -> None:
    examples = [EXAMPLE, replace(EXAMPLE, id="2", system="CREATE TABLE t (\na INT\n);")]
    write_examples(tmp_path / "train.jsonl", examples)
    assert read_examples(tmp_path / "train.jsonl") == examples
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_fields_of_other_tools_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(asdict(EXAMPLE) | {"thoughts": ["a"]}) + "\n", encoding="utf-8")
    assert read_examples(path) == [EXAMPLE]


def test_reasoning_is_written_only_if_there_is_some(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    reasoned = replace(EXAMPLE, id="2", reasoning="First I look at\nthe orders.")
    write_examples(path, [EXAMPLE, reasoned])
    plain, with_reasoning, _ = path.read_text(encoding="utf-8").split("\n")
    assert read_examples(path) == [EXAMPLE, reasoned]
    assert list(json.loads(plain)) == [
        name for name in asdict(EXAMPLE) if name not in ("reasoning", "evidence", "difficulty", "weight")
    ]
    assert list(json.loads(with_reasoning))[-1] == "reasoning"


def test_a_weight_is_written_only_if_it_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_examples(path, [EXAMPLE, replace(EXAMPLE, weight=3)])
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line).get("weight") for line in lines] == [None, 3]
    assert [example.weight for example in read_examples(path)] == [1, 3]


def test_a_column_without_a_value_is_null_in_other_programs(tmp_path: Path) -> None:
    record = asdict(EXAMPLE) | dict.fromkeys(["reasoning", "evidence", "difficulty"]) | {"weight": 1.0}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert read_examples(tmp_path / "train.jsonl") == [EXAMPLE]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{", "train.jsonl:2: not JSON", id="not JSON"),
        pytest.param("[1]", "train.jsonl:2: not a JSON object", id="not an object"),
        pytest.param({"sql": None}, "train.jsonl:2: the field 'sql' is not a string but NoneType", id="not a string"),
        *(
            pytest.param({"weight": weight}, "train.jsonl:2: the field 'weight' is ", id=f"weight {weight!r}")
            for weight in (0, -1, 1.5, True, "2", 10**30)
        ),
        pytest.param(
            {"reasoning": ["a"]}, "train.jsonl:2: the field 'reasoning' is not a string but list", id="thoughts"
        ),
        pytest.param({"question": " "}, "train.jsonl:2: the field 'question' is empty", id="empty"),
        pytest.param({"db_id": ...}, "train.jsonl:2: the field 'db_id' is missing", id="missing"),
    ],
)
def test_a_malformed_line_is_an_error_that_names_its_field(
    tmp_path: Path, line: str | dict[str, object], message: str
) -> None:
    if isinstance(line, dict):
        changed = asdict(EXAMPLE) | line
        line = json.dumps({name: value for name, value in changed.items() if value is not ...})
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(asdict(EXAMPLE)) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_examples(path)
    assert message in str(error.value)


def test_a_missing_file_or_one_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read"):
        read_examples(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"id": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.jsonl: not UTF-8"):
        read_examples(tmp_path / "latin.jsonl")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_examples(path, [EXAMPLE])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # has the effect of a full disk
    try:
        with pytest.raises(StorageError, match=r"train\.jsonl: cannot be written \(File too large\)"):
            write_examples(path, [replace(EXAMPLE, question="x" * (1 << 21))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [left.name for left in tmp_path.iterdir()] == ["train.jsonl"]
