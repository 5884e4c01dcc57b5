"""Sources in a bucket."""

from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.storage.mirror import push_folder


def settings(source: str, tokenizer: Path) -> PreprocessSettings:
    return PreprocessSettings(source=source, format="jsonl", tokenizer=str(tokenizer), workers=1)


def test_a_source_in_a_bucket_gives_the_same_dataset_with_its_uris_in_the_card(
    shop: Path, tokenizer: Path, bucket: str, tmp_path: Path
) -> None:
    uri = push_folder(shop, f"s3://{bucket}/inputs")
    card = preprocess(settings(uri, tokenizer), tmp_path / "remote")
    here = preprocess(settings(str(shop), tokenizer), tmp_path / "local")
    assert card.databases == f"{uri}/databases"
    assert Path(here.databases) == shop / "databases"
    for name in ("train.jsonl", "dev.jsonl"):
        assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_a_file_and_databases_in_different_prefixes(shop: Path, tokenizer: Path, bucket: str, tmp_path: Path) -> None:
    questions = push_folder(shop, f"s3://{bucket}/inputs")
    databases = push_folder(shop / "databases", f"s3://{bucket}/databases")
    chosen = settings(f"{questions}/train.jsonl", tokenizer).model_copy(update={"databases": databases})
    assert preprocess(chosen, tmp_path / "dataset").databases == databases


def test_a_uri_that_does_not_exist_is_an_error(tokenizer: Path, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; check the URI"):
        preprocess(settings(f"s3://{bucket}/typo", tokenizer), tmp_path / "dataset")
