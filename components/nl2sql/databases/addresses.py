"""Where databases are: a folder of SQLite files, the address of a server or of DuckDB files, or a list of addresses.

A list is JSON text, so that it passes wherever an address does: [{"name": "hotel", "address": "postgresql+psycopg://..."}].
This module uses the standard library only, so that recipes and the command line can check an address without a driver.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from urllib.parse import quote, urlsplit

# Dialects of SQL, as sqlglot names them, by the scheme of an address.
DIALECTS = {"postgresql": "postgres", "mysql": "mysql", "mariadb": "mysql", "duckdb": "duckdb"}
SQLITE = "sqlite"
PLACEHOLDER = "{db_id}"  # for the name of a question's database
# Names for people and for prompts.
TITLES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "mysql": "MySQL", "duckdb": "DuckDB"}


def title(dialect: str) -> str:
    """The name of a dialect for people and models; `dialect` is sqlglot's."""
    return TITLES.get(dialect, dialect)


@dataclass(frozen=True, slots=True)
class ListedDatabase:
    """One database of a list.

    Attributes:
        name: its name in questions.
        address: its address; `{db_id}` in it is the name.
        schema: the schema whose tables questions are about, in PostgreSQL; empty for those of the search path.
        tables: the tables and views that questions are about; empty for all.
    """

    name: str
    address: str
    schema: str = ""
    tables: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The address of this database alone, with its schema as an option of the connection."""
        address = self.address.replace(PLACEHOLDER, self.name)
        if not self.schema:
            return address
        path = '"' + self.schema.replace('"', '""') + '"'
        # libpq splits options at spaces without a backslash.
        option = "-csearch_path=" + re.sub(r"([\\ ])", r"\\\1", path)
        return f"{address}{'&' if '?' in address else '?'}options={quote(option)}"


def as_text(listed: Sequence[ListedDatabase]) -> str:
    """A list as text."""
    return json.dumps([asdict(each) for each in listed], ensure_ascii=False)


def listed_at(where: str) -> dict[str, ListedDatabase]:
    """The databases of a list by name; empty if it is a folder or an address."""
    if not where.startswith("["):
        return {}
    found = [ListedDatabase(**{**each, "tables": tuple(each.get("tables", ()))}) for each in json.loads(where)]
    return {each.name: each for each in found}


def is_address(where: str) -> bool:
    """Whether databases are at the address of a server or of DuckDB files, and not in a folder or a bucket."""
    return "://" in where and not where.startswith("s3://")


def dialect_at(where: str, db_id: str = "") -> str:
    """The dialect of a database in a folder, at an address or in a list, as sqlglot names it; SQLite's if not known."""
    if listed := listed_at(where):
        where = listed[db_id].address if db_id in listed else ""
    return DIALECTS.get(where.partition(":")[0].partition("+")[0], SQLITE) if is_address(where) else SQLITE


def one_at(where: str, db_id: str) -> str:
    """Where one of the databases at an address or in a list is, with the name that questions have for it."""
    listed = listed_at(where)
    address = where.replace(PLACEHOLDER, db_id)
    is_plain = not listed and name_at(address) == db_id
    return address if is_plain else as_text([listed.get(db_id) or ListedDatabase(db_id, address)])


def password_variables(where: str) -> list[str]:
    """The environment variables with the passwords of accounts, as the servers' own programs read them."""
    addresses = [each.address for each in listed_at(where).values()] or [where]
    return sorted({"MYSQL_PWD" if dialect_at(address) == "mysql" else "PGPASSWORD" for address in addresses})


def without_password(where: str) -> str:
    """The folder, address or list itself.

    Raises:
        ValueError: it contains a password, which would be written to logs and artifacts.
    """
    for each in listed_at(where).values():
        without_password(each.address)
    try:
        has_password = is_address(where) and urlsplit(where).password is not None
    except ValueError as error:
        raise ValueError("it is not an address that can be parsed") from error
    if has_password:
        [variable] = password_variables(where)
        raise ValueError(f"it contains a password; leave it out, and set {variable} in the environment")
    return where


def name_at(where: str) -> str:
    """The name of the one database at an address; empty if the address is of several, `{db_id}`."""
    if listed := listed_at(where):
        return "" if len(listed) > 1 else next(iter(listed))
    name = urlsplit(where).path.rpartition("/")[2].removesuffix(".duckdb")
    return "" if PLACEHOLDER in where else name
