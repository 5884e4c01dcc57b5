"""Questions in Parquet files and on the Hugging Face Hub, of which a local server stands in for the Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.preprocess.sources import read_source
from tests.preprocess.hub_server import NAME, hub

OLD, NEW = "a" * 40, "b" * 40
QUERY = "SELECT count(*) FROM item"
RUN = "from chatmetrics.pipelines.cli.main import main; main()"
CARD = """\
---
configs:
- config_name: plain
  data_files: [{split: train, path: "plain/train-*"}, {split: validation, path: "plain/dev.parquet"}]
- config_name: spoken
  data_files: [{split: train, path: spoken.parquet}]
---
"""


def write_json_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def questions(*texts: str) -> list[dict[str, str]]:
    return [{"db_id": "shop", "question": text, "query": QUERY} for text in texts]


def write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), path)


@pytest.fixture
def commits(tmp_path: Path) -> dict[str, Path]:
    """Two commits of a dataset with two configurations."""
    for commit, text in ((OLD, "How many?"), (NEW, "How many items?")):
        folder = tmp_path / commit
        write_parquet(folder / "plain" / "train-00000-of-00002.parquet", questions(text))
        write_parquet(folder / "plain" / "train-00001-of-00002.parquet", questions("多少商品?"))
        write_parquet(folder / "plain" / "dev.parquet", questions("Number of items?"))
        write_parquet(folder / "spoken.parquet", questions("um how many", "er how many"))
        (folder / "README.md").write_text(CARD, encoding="utf-8")
        (folder / "questions.py").write_text("raise SystemExit('code of a dataset ran')", encoding="utf-8")
    return {commit: tmp_path / commit for commit in (OLD, NEW)}


class Preprocess:
    """Runs `chatmetrics preprocess` with a Hub and a cache of its own."""

    def __init__(self, shop: Path, tokenizer: Path, folder: Path) -> None:
        self._shop, self._tokenizer, self._folder = shop, tokenizer, folder

    def __call__(self, source: str, endpoint: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        settings = {
            "source": source,
            "format": "jsonl",
            "databases": str(self._shop / "databases"),
            "tokenizer": str(self._tokenizer),
            "workers": "1",
        }
        options = [option for key, value in settings.items() for option in ("--set", f"preprocess.{key}={value}")]
        own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(self._folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return subprocess.run(
            [sys.executable, "-c", RUN, "preprocess", "-o", str(self.dataset), *options],
            env={**os.environ, **own, **environment},
            capture_output=True,
            text=True,
        )

    @property
    def dataset(self) -> Path:
        return self._folder / "dataset"

    @property
    def card(self) -> dict[str, Any]:
        return dict(json.loads((self.dataset / "dataset_card.json").read_bytes()))

    def read(self, split: str = "train") -> list[Example]:
        return read_examples(self.dataset / f"{split}.jsonl")


@pytest.fixture
def preprocess(shop: Path, tokenizer: Path, tmp_path: Path) -> Preprocess:
    return Preprocess(shop, tokenizer, tmp_path)


def test_a_dataset_on_the_hub_is_read_and_its_commit_recorded(preprocess: Preprocess, commits: dict[str, Path]) -> None:
    with hub(commits) as server:
        done = preprocess(f"hub:{NAME}/plain", server.endpoint)
        assert done.returncode == 0, done.stderr
        assert [example.question for example in preprocess.read()] == ["How many items?", "多少商品?"]
        assert [example.question for example in preprocess.read("dev")] == ["Number of items?"]
        assert preprocess.card["source"] == f"hub:{NAME}/plain@{NEW}"
        assert not [path for path in server.asked if path.endswith(".py")]

        done = preprocess(f"hub:{NAME}/spoken@{OLD}", server.endpoint)
        assert done.returncode == 0, done.stderr
        assert {example.question for example in preprocess.read()} == {"um how many", "er how many"}
        assert preprocess.card["source"] == f"hub:{NAME}/spoken@{OLD}"


def test_text_that_looks_like_a_missing_value_is_text(preprocess: Preprocess, tmp_path: Path) -> None:
    (tmp_path / NEW).mkdir()
    rows = f"question,query,db_id\nHow many?,{QUERY},shop\nNA,{QUERY},shop\n"
    (tmp_path / NEW / "train.csv").write_text(rows, encoding="utf-8")
    with hub({NEW: tmp_path / NEW}) as server:
        done = preprocess(f"hub:{NAME}", server.endpoint)
    assert done.returncode == 0, done.stderr
    assert {example.question for example in preprocess.read()} == {"How many?", "NA"}


def test_without_a_network_the_pinned_commit_is_read(preprocess: Preprocess, commits: dict[str, Path]) -> None:
    with hub(commits) as server:
        for revision in (OLD, "main"):
            assert preprocess(f"hub:{NAME}/plain@{revision}", server.endpoint).returncode == 0
    for offline in ({"HF_HUB_OFFLINE": "1"}, {}):
        done = preprocess(f"hub:{NAME}/plain@{OLD}", "http://127.0.0.1:9", **offline)
        assert done.returncode == 0, done.stderr
        assert [example.question for example in preprocess.read()] == ["How many?", "多少商品?"]
        assert preprocess.card["source"] == f"hub:{NAME}/plain@{OLD}"
        done = preprocess(f"hub:{NAME}/plain", "http://127.0.0.1:9", **offline)
        assert done.returncode == 0, done.stderr
        assert preprocess.card["source"] == f"hub:{NAME}/plain@{NEW}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:questions", "'hub:questions': write hub:ORGANIZATION/NAME"),
        (f"hub:{NAME}", "plain"),
        (f"hub:{NAME}/plian", "spoken"),
        (f"hub:{NAME}/plain@v9", f"dataset {NAME}: the download from the Hugging Face Hub failed"),
        ("hub:shops/none", "dataset shops/none: the download from the Hugging Face Hub failed"),
    ],
)
def test_a_wrong_name_is_an_error_that_says_what_there_is(
    preprocess: Preprocess, commits: dict[str, Path], source: str, message: str
) -> None:
    with hub(commits) as server:
        done = preprocess(source, server.endpoint)
    assert done.returncode == 3 and message in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr


HOSTILE_CARDS = {
    "a file of this machine": ('"/etc/passwd"', "names '/etc/passwd' as data, which is no file of the dataset"),
    "a file above": ('"../../../../secret.jsonl"', "which is no file of the dataset"),
    "a file URL": ('"file:///etc/passwd"', "which is no file of the dataset"),
    "another server": ('"http://127.0.0.1:9/x.jsonl"', "which is no file of the dataset"),
    "a chained URL": ('"zip://x::http://127.0.0.1:9/x.zip"', "which is no file of the dataset"),
    "a list": ('["train.jsonl", "/etc/passwd"]', "which is no file of the dataset"),
    "a split": ('[{split: train, path: ["../x.jsonl"]}]', "which is no file of the dataset"),
    "no YAML": ("[", "the header of its README.md is not YAML"),
    "code": ("!!python/object/apply:os.system [touch /tmp/x]", "the header of its README.md is not YAML"),
    "nothing": ("missing.jsonl", "is no dataset that can be read"),
    "another kind": ("{a: {b: 3}}", "is no dataset that can be read"),
}


@pytest.mark.parametrize("kind", HOSTILE_CARDS)
def test_a_card_names_only_files_of_its_dataset(preprocess: Preprocess, tmp_path: Path, kind: str) -> None:
    data_files, message = HOSTILE_CARDS[kind]
    (tmp_path / NEW).mkdir()
    (tmp_path / "secret.jsonl").write_text("PASSWORD\n", encoding="utf-8")
    write_json_lines(tmp_path / NEW / "train.jsonl", questions("How many?"))
    header = f"---\nconfigs:\n- config_name: default\n  data_files: {data_files}\n---\n"
    (tmp_path / NEW / "README.md").write_text(header, encoding="utf-8")
    with hub({NEW: tmp_path / NEW}) as server:
        done = preprocess(f"hub:{NAME}", server.endpoint)
    assert done.returncode == 3 and message in done.stderr.splitlines()[-1], done.stderr


def test_files_of_the_hub_are_read_as_text(preprocess: Preprocess, tmp_path: Path) -> None:
    """Values that `datasets` would change: dates, numbers, missing values, and a comma too many."""
    (tmp_path / NEW).mkdir()
    texts = ["2024-01-01", "NA", "12", "2024-01-01T00:00:00"]
    write_json_lines(tmp_path / NEW / "train.jsonl", questions(*texts))
    with hub({NEW: tmp_path / NEW}) as server:
        assert preprocess(f"hub:{NAME}", server.endpoint).returncode == 0
        asked = [example.question for split in ("train", "dev") for example in preprocess.read(split)]
        assert sorted(asked) == sorted(texts)
        (tmp_path / NEW / "train.jsonl").unlink()
        rows = f"question,query,db_id\nHow many, and why?,{QUERY},shop\n"
        (tmp_path / NEW / "train.csv").write_text(rows, encoding="utf-8")
        (tmp_path / OLD).symlink_to(tmp_path / NEW)
        server.commits[OLD] = tmp_path / OLD
        done = preprocess(f"hub:{NAME}@{OLD}", server.endpoint)
        assert f"hub:{NAME}@{OLD}: train.csv:2: more values than the header has columns" in done.stderr


def test_a_part_of_a_dataset_is_not_taken_for_the_whole(preprocess: Preprocess, tmp_path: Path) -> None:
    """Another program downloaded one file of two, and now there is no network."""
    for shard in range(2):
        write_parquet(tmp_path / NEW / f"train-0000{shard}-of-00002.parquet", questions(f"shard {shard}"))
    code = "import sys; from huggingface_hub import hf_hub_download as f; f(*sys.argv[1:], repo_type='dataset')"
    with hub({NEW: tmp_path / NEW}) as server:
        own = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "hf")}
        words = [sys.executable, "-c", code, NAME, "train-00000-of-00002.parquet"]
        subprocess.run(words, env={**os.environ, **own}, check=True)
    for source in (f"hub:{NAME}", f"hub:{NAME}@{NEW}"):
        done = preprocess(source, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
        assert "does not know whether these are all" in done.stderr.splitlines()[-1], done.stderr
    (tmp_path / NEW / "notes.txt").write_text("other", encoding="utf-8")
    with hub({NEW: tmp_path / NEW}) as server:
        assert preprocess(f"hub:{NAME}", server.endpoint).returncode == 0
    assert preprocess(f"hub:{NAME}", "http://127.0.0.1:9", HF_HUB_OFFLINE="1").returncode == 0
    assert preprocess.card["splits"] == {"train": 2}


def test_a_repository_without_data_is_an_error(preprocess: Preprocess, tmp_path: Path) -> None:
    (tmp_path / NEW).mkdir()
    (tmp_path / NEW / "notes.txt").write_text("text", encoding="utf-8")
    with hub({NEW: tmp_path / NEW}) as server:
        done = preprocess(f"hub:{NAME}", server.endpoint)
    assert "has no Parquet, JSON or CSV files" in done.stderr.splitlines()[-1], done.stderr


def test_a_hub_that_does_not_answer_is_an_error(preprocess: Preprocess) -> None:
    done = preprocess(f"hub:{NAME}", "http://127.0.0.1:9")
    assert "the Hugging Face Hub does not answer" in done.stderr.splitlines()[-1]


def read(source: Path, databases: Path, **settings: Any) -> list[str]:
    values = {"source": str(source), "databases": str(databases), "format": "jsonl", "dev_fraction": 0, **settings}
    return [record.question for record in read_source(PreprocessSettings.model_validate(values)).records]


def test_parquet_is_read_from_a_file_shards_and_a_set(shop: Path, tmp_path: Path) -> None:
    table = [{"nl": text, "SQL": QUERY, "DB": "shop", "parsed": [[1, None]]} for text in ("a", "2024-01-01", "")]
    fields = {"question": "nl", "db_id": "db"}
    write_parquet(tmp_path / "mine.bin", table[:2])  # the content decides
    assert read(tmp_path / "mine.bin", shop, fields=fields) == ["a", "2024-01-01"]
    for shard in range(2):
        write_parquet(tmp_path / "shards" / f"train-0000{shard}-of-00002.parquet", [table[shard]])
    write_parquet(tmp_path / "shards" / "dev.parquet", table[:1])
    assert read(tmp_path / "shards", shop, fields=fields) == ["a", "2024-01-01", "a"]
    write_parquet(tmp_path / "mine.parquet", table)
    with pytest.raises(InputError, match=r"mine.parquet: row 3: the field 'nl' is empty"):
        read(tmp_path / "mine.parquet", shop, fields=fields)


@pytest.mark.parametrize("name", ["q[1].parquet", "q*.parquet", "q?.parquet", "a::b.parquet"])
def test_a_name_is_no_pattern(shop: Path, tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / "p[1]" / "q1.parquet", questions("other"))
    write_parquet(tmp_path / "p[1]" / name, questions("mine"))
    assert read(tmp_path / "p[1]" / name, shop) == ["mine"]


@pytest.mark.parametrize("there", [["0-of-00003"], ["0-of-00002", "1-of-00002", "0-of-00001"], ["0-of-00002"]])
def test_shards_are_complete(shop: Path, tmp_path: Path, there: list[str]) -> None:
    for each in there:
        write_parquet(tmp_path / "shards" / f"train-0000{each}.parquet", questions("a"))
    with pytest.raises(InputError, match=r"files train-NUMBER-of-NUMBER.parquet are missing, or there are too many"):
        read(tmp_path / "shards", shop)


def test_an_empty_parquet_file_has_no_questions(shop: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), tmp_path / "mine.parquet")
    with pytest.raises(InputError, match=r"mine.parquet: contains no questions"):
        read(tmp_path / "mine.parquet", shop)


def test_a_damaged_parquet_file_is_an_error(shop: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "mine.parquet", questions("a"))
    content = (tmp_path / "mine.parquet").read_bytes()
    (tmp_path / "mine.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"mine.parquet: .*cannot be read"):
        read(tmp_path / "mine.parquet", shop)


def test_only_such_sources_need_the_library(shop: Path, tokenizer: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from chatmetrics.components.preprocess.preprocess import preprocess\n"
        "from chatmetrics.components.preprocess.settings import PreprocessSettings\n"
        "source, tokenizer, output = sys.argv[1:]\n"
        "settings = PreprocessSettings(source=source, format='jsonl', tokenizer=tokenizer, workers=1)\n"
        "preprocess(settings, Path(output))\n"
        "assert not {'datasets', 'pyarrow', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, shop, tokenizer, tmp_path / "dataset"], check=True)


def test_the_dataset_folder_opens_with_the_library(
    preprocess: Preprocess, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preprocess(str(shop), "").returncode == 0
    from datasets import load_dataset

    loaded = load_dataset(str(preprocess.dataset), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "dev"}
    for split, rows in loaded.items():
        expected = preprocess.read(str(split))
        assert len(rows) == len(expected)
        for row, example in zip(rows, expected, strict=True):
            assert {name: value or "" for name, value in row.items() if name != "weight"} == {
                name: getattr(example, name) for name in row if name != "weight"
            }
