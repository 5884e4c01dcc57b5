"""Databases of a dataset that come from several places."""

import json
from pathlib import Path

from chatmetrics.components.nl2sql.databases.execution import database_path
from chatmetrics.components.storage.dataset_databases import located_databases
from chatmetrics.components.storage.mirror import push_folder


def dataset_of(folder: Path, databases: str, held_out: dict[str, str]) -> Path:
    folder.mkdir()
    card = {"databases": databases, "held_out_databases": held_out}
    (folder / "dataset_card.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


def contents(where: str) -> dict[str, str]:
    found = {}
    for name in ("a", "b", "c", "d"):
        if list(Path(where).rglob(f"{name}.sqlite")):
            found[name] = database_path(Path(where), name).read_text("utf-8")
    return found


def test_they_are_found_in_one_folder(tmp_path: Path, bucket: str) -> None:
    for name in ("main/a/a", "main/b", "main/b/b", "main/c", "own/d", "own/a"):
        path = tmp_path / f"{name}.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    main, own = str(tmp_path / "main"), str(tmp_path / "own")
    remote_main = push_folder(tmp_path / "main", f"s3://{bucket}/data")
    remote_own = push_folder(tmp_path / "own", f"s3://{bucket}/data")
    expected = {"a": "main/a/a", "b": "main/b/b", "c": "main/c", "d": "own/d"}
    for number, (first, second) in enumerate(
        [(main, own), (main, remote_own), (remote_main, own), (remote_main, remote_own)]
    ):
        dataset = dataset_of(tmp_path / f"dataset{number}", first, {"d": second})
        with located_databases(dataset, held_out=True) as where:
            assert contents(where) == expected
        with located_databases(dataset) as where:  # a teacher sees no database of a held-out set
            assert "d" not in contents(where)
        with located_databases(dataset, wanted={"a", "d"}.__contains__, held_out=True) as where:
            assert contents(where) == {"a": "main/a/a", "d": "own/d"}
        with located_databases(dataset, wanted={"a"}.__contains__, held_out=True) as where:
            assert contents(where)["a"] == "main/a/a"
            assert (where == main) == (first == main)  # nothing is copied or linked without need
        with located_databases(dataset, "sqlite://server") as where:
            assert where == "sqlite://server"
    assert (tmp_path / "main/a/a.sqlite").read_text("utf-8") == "main/a/a"
