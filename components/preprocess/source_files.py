"""Where the questions and databases of a source are, by the names of files and folders alone."""

import filecmp
from collections.abc import Iterable, Iterator
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.execution import database_path

DEV_ARRAY = "dev.json"
TEST_ARRAY = "test.json"
FOLDERS = ("database", "databases")
DESCRIPTIONS = "database_description"  # BIRD's, in the folder of a database
# Those next to the questions of a held-out set also have BIRD's name, and that of Spider's test questions.
TEST_FOLDER = "test_database"
HELD_OUT_FOLDERS = (*FOLDERS, "dev_databases", TEST_FOLDER)


def folder_of_databases(places: Iterable[Path], names: Iterable[str] = FOLDERS) -> Path:
    """The first folder of databases that one of the places contains by one of these names, or else the first place."""
    first, *others = places
    found = (path for place in (first, *others) for name in names if (path := place / name).is_dir())
    return next(found, first).absolute()


def tables_near(*folders: Path) -> Path | None:
    """Spider's tables.json; it is searched in the folders and in their parent folders."""
    candidates = (place / "tables.json" for folder in folders for place in (folder, folder.parent))
    return next(filter(Path.is_file, candidates), None)


def sqlite_file(folder: Path, db_id: str) -> Path | None:
    """The file of a database in a folder; None if it has none."""
    try:
        return database_path(folder, db_id)
    except InputError:
        return None  # `Source.file` reports what is missing everywhere


def is_only_here(key: str, here: Path | None, elsewhere: Path | None) -> bool:
    """Whether only this place has a database.

    Raises:
        InputError: the other place has a different one of this name.
    """
    if here and elsewhere and not filecmp.cmp(here, elsewhere, shallow=False):
        raise InputError(
            f"{key}: {here} and {elsewhere} are different databases with the name {here.stem!r}; rename one of them"
        )
    return here is not None and elsewhere is None


def held_out_questions(path: Path) -> list[Path]:
    """The files with a held-out set's questions: the file itself; in a folder its dev.json, test.json or *_test.json.

    Raises:
        InputError: the path does not exist, or it is not clear which file of the folder is meant.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    found = [file for name in (DEV_ARRAY, TEST_ARRAY) if (file := path / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{path}: has {DEV_ARRAY} and {TEST_ARRAY}; name one of the files")
    found = found or sorted(path.glob("*_test.json"))
    if not found:
        raise InputError(f"{path}: has no {DEV_ARRAY}, {TEST_ARRAY} or *_test.json; name the file with the questions")
    return found


def held_out_databases(questions: Path, databases: str) -> Path:
    """The folder of a set's own databases: in the folder given, next to its questions, or one level above."""
    places = [Path(databases).expanduser()] if databases else [questions.parent, questions.parent.parent]
    return folder_of_databases(places, _test_first(HELD_OUT_FOLDERS, questions))


def held_out_tables(questions: Path, databases: Path) -> Iterator[Path]:
    """The files of schemas next to a set's questions or databases, such as KaggleDBQA_tables.json."""
    for folder in dict.fromkeys((questions.parent, questions.parent.parent, databases.parent)):
        names = sorted(path.name for path in folder.glob("*tables.json"))
        yield from (folder / name for name in _test_first(names, questions))


def _test_first(names: Iterable[str], questions: Path) -> list[str]:
    """The names in their order, but those of Spider's test questions first if these are meant, and otherwise last."""
    is_test = questions.name == TEST_ARRAY
    return sorted(names, key=lambda name: name.startswith("test") != is_test)
