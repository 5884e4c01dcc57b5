"""Where databases are: a folder of SQLite files, or the address of a server or of DuckDB files.

It uses the standard library only, so that recipes and the command line can check an address without a driver.
"""

from urllib.parse import urlsplit

# Dialects of SQL, as sqlglot names them, by the scheme of an address.
DIALECTS = {"postgresql": "postgres", "mysql": "mysql", "mariadb": "mysql", "duckdb": "duckdb"}
SQLITE = "sqlite"
PLACEHOLDER = "{db_id}"  # for the name of a question's database
# Names for people and for prompts.
TITLES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "mysql": "MySQL", "duckdb": "DuckDB"}


def is_address(where: str) -> bool:
    """Whether databases are at the address of a server or of DuckDB files, and not in a folder or a bucket."""
    return "://" in where and not where.startswith("s3://")


def dialect_at(where: str) -> str:
    """The dialect of the databases at a folder or an address, as sqlglot names it; SQLite's if it is not known."""
    return DIALECTS.get(where.partition(":")[0].partition("+")[0], SQLITE) if is_address(where) else SQLITE


def password_variable(where: str) -> str:
    """The environment variable with the password of the account in an address, as the server's own programs read it."""
    return "MYSQL_PWD" if dialect_at(where) == "mysql" else "PGPASSWORD"


def without_password(where: str) -> str:
    """The folder or address itself.

    Raises:
        ValueError: it contains a password, which would be written to logs and artifacts.
    """
    try:
        has_password = is_address(where) and urlsplit(where).password is not None
    except ValueError as error:
        raise ValueError("it is not an address that can be parsed") from error
    if has_password:
        variable = password_variable(where)
        raise ValueError(f"it contains a password; leave it out, and set {variable} in the environment")
    return where


def name_at(where: str) -> str:
    """The name of the one database at an address; empty if the address is of several, `{db_id}`."""
    name = urlsplit(where).path.rpartition("/")[2].removesuffix(".duckdb")
    return "" if PLACEHOLDER in where else name
