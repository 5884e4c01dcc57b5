"""All that is known about the databases of a source."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.descriptions import Descriptions, KnownDatabases
from chatmetrics.components.nl2sql.example import question_key
from chatmetrics.components.nl2sql.record_files import read_text
from chatmetrics.components.preprocess.knowledge import bird, dbt, own_file
from chatmetrics.components.preprocess.knowledge.texts import parse_yaml
from chatmetrics.components.preprocess.readers import TRAIN, Record, Source
from chatmetrics.components.preprocess.source_files import DESCRIPTIONS

SETTING = "preprocess.knowledge"
_OUR_KEY = re.compile(rf"^[\"']?({'|'.join((*own_file.KEYS, *dbt.KEYS))})[\"']?\s*:", re.MULTILINE)
ENDINGS = (".yaml", ".yml")
PROJECT = "dbt_project.yml"
OWN_NAME = "knowledge"
NOT_OURS = ("target", "dbt_packages")  # what dbt writes and installs into a project


@dataclass(slots=True)
class Knowledge:
    """What files say about databases.

    Attributes:
        own: descriptions from knowledge files, by database.
        bird: descriptions from BIRD's files, by database.
        dbt: descriptions from dbt, of the tables of that name in every database.
        terms: terms of all databases.
        examples: questions with their SQL from knowledge files.
    """

    own: dict[str, Descriptions] = field(default_factory=dict)
    bird: dict[str, Descriptions] = field(default_factory=dict)
    dbt: Descriptions = field(default_factory=Descriptions)
    terms: dict[str, str] = field(default_factory=dict)
    examples: list[Record] = field(default_factory=list)

    def summary(self) -> str:
        """How much is known, in words; "" if nothing is."""
        every = [*self.own.values(), *self.bird.values(), self.dbt, Descriptions(terms=self.terms)]
        counts = {
            "table": sum(len(each.tables) for each in every),
            "column": sum(len(names) for each in every for names in each.columns.values()),
            "foreign key": sum(len(each.foreign_keys) for each in every),
            "term": sum(len(each.terms) for each in every),
            "private column": sum(len(names) for each in every for names in each.private.values()),
            "example": len(self.examples),
        }
        return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count)

    def has_private(self, db_id: str) -> bool:
        """Whether a database has private columns."""
        return bool(self.dbt.private or (db_id in self.own and self.own[db_id].private))

    def with_tables(self, tables: Mapping[str, Descriptions]) -> KnownDatabases:
        """What prompts show about each database.

        A knowledge file wins over BIRD's files, these over tables.json, and all over dbt.
        """
        merged = dict(tables)
        for layer in (self.bird, self.own):
            for db_id, known in layer.items():
                merged[db_id] = merged.get(db_id, Descriptions()).updated(known)
        found = KnownDatabases(merged, self.dbt.updated(Descriptions(terms=self.terms)))
        for db_id in merged:
            private = found.get(db_id, Descriptions()).private
            _warn_of_private_values(db_id, merged[db_id].updated(Descriptions(private=private)))
        return found


def read_knowledge(path: str) -> Knowledge:
    """Read the recipe's knowledge.

    Args:
        path: a file or folder with `knowledge.yaml`, dbt's property files, or BIRD's descriptions; "" for none.

    Raises:
        InputError: a file cannot be read or is malformed; names it.
    """
    knowledge = Knowledge()
    if path:
        root = Path(path).expanduser().absolute()
        files = _read_files(root, knowledge)
        folders = [root] if root.name == DESCRIPTIONS and root.is_dir() else []
        folders += sorted(folder for folder in root.rglob(DESCRIPTIONS) if folder.is_dir())
        if not files and not folders:
            raise InputError(f"{root}: contains no knowledge.yaml, dbt properties or {DESCRIPTIONS}; check {SETTING}")
        knowledge.bird = {folder.parent.name: bird.read_bird(folder) for folder in folders}
    return knowledge


def add_bird(knowledge: Knowledge, source: Source) -> None:
    """Add BIRD's descriptions next to the databases that questions are about."""
    for db_id in dict.fromkeys(record.db_id for record in source.records):
        folder = source.folder_of(db_id) / db_id / DESCRIPTIONS
        if db_id not in knowledge.bird and folder.is_dir():
            knowledge.bird[db_id] = bird.read_bird(folder)


def with_examples(source: Source, examples: Sequence[Record]) -> Source:
    """Add examples to a source's training questions, without those that it has already."""
    splits = {question_key(record.db_id, record.question): record.split for record in source.records}
    new = [each for each in examples if question_key(each.db_id, each.question) not in splits]
    scored = [each for each in examples if splits.get(question_key(each.db_id, each.question), TRAIN) != TRAIN]
    if scored:
        console.warning(
            f"preprocess: {len(scored)} examples are left out, because the model is scored on their questions; the "
            f"first is {scored[0].where}"
        )
    return replace(source, records=[*source.records, *new])


def _read_files(root: Path, knowledge: Knowledge) -> int:
    """Read the YAML files at a path; returns how many have knowledge."""
    if not root.exists():
        raise InputError(f"{root}: no such file or folder; check {SETTING}")
    files = [root] if root.is_file() else sorted(filter(_is_yaml, root.rglob("*")))
    # A mounted ConfigMap contains each file twice, once in a hidden folder.
    own = (path for path in files if not any(_is_not_ours(part) for part in path.relative_to(root).parts))
    return sum(_read_file(file, root, knowledge) for file in own)


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.is_file() and path.name != PROJECT


def _is_not_ours(part: str) -> bool:
    return part.startswith(".") or part in NOT_OURS


def _read_file(path: Path, root: Path, knowledge: Knowledge) -> bool:
    name = str(path)
    content = _content(path, root)
    keys = set(content) if isinstance(content, dict) else set()
    if keys & set(own_file.KEYS):
        described, terms, examples = own_file.parse_own(content, name)
        for db_id, known in described.items():
            knowledge.own[db_id] = knowledge.own.get(db_id, Descriptions()).updated(known)
        knowledge.terms |= terms
        first = len(knowledge.examples) + 1
        knowledge.examples += [
            replace(each, id=f"knowledge:{each.db_id}:{number}") for number, each in enumerate(examples, start=first)
        ]
        return True
    if keys & set(dbt.KEYS):
        knowledge.dbt = knowledge.dbt.updated(dbt.parse_dbt(content, name))
        return True
    known_keys = ", ".join((*own_file.KEYS, *dbt.KEYS))
    if path == root:
        raise InputError(f"{name}: has none of the keys {known_keys}; docs/knowledge.md describes the file")
    console.info(f"preprocess: {name} is skipped: it has none of the keys {known_keys}")
    return False


def _content(path: Path, root: Path) -> Any:
    """What a YAML file contains; None if it is not for us: a folder may have files of any kind, also malformed ones."""
    is_named = path == root or path.stem.lower() == OWN_NAME
    try:
        text = read_text(path, str(path))
    except InputError:
        if is_named:
            raise
        return None
    return parse_yaml(text, str(path)) if is_named or _OUR_KEY.search(text) else None


def _warn_of_private_values(db_id: str, known: Descriptions) -> None:
    described = [(table, name) for table, names in known.values.items() for name in names]
    private = known.private_columns
    left_out = [f"{table}.{name}" for table, name in described if (table.lower(), name.lower()) in private]
    if left_out:
        console.warning(
            f"preprocess: {db_id}: what is known about the values of private columns is left out: {', '.join(left_out)}"
        )
