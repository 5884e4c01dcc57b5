"""The check of `chatmetrics doctor --databases`."""

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.addresses import PLACEHOLDER, is_address, name_at

SECONDS = 10.0


def checked_database(address: str) -> str:
    """Connect to a database as a run does, and return a line about the account and the schema.

    Args:
        address: of one database, on a server or of a DuckDB file.

    Raises:
        InputError: it cannot be used; says why. Or a package that checks it is not installed.
    """
    if not is_address(address):
        raise InputError(f"--databases: {address} is no address; write postgresql+psycopg://HOST/DATABASE, for example")
    if not (name := name_at(address)):
        raise InputError(f"--databases: write the name of a database for {PLACEHOLDER}")
    try:
        from chatmetrics.components.nl2sql.databases.databases import open_databases
        from chatmetrics.components.nl2sql.databases.server_databases import ServerDatabases
    except ModuleNotFoundError as error:
        raise InputError(f"--databases: the check needs {error.name}; install chatmetrics[preprocess]") from error
    with open_databases(address, SECONDS) as databases:
        databases.check(name)
        schema = databases.structure(name)
        account = databases.account(name) if isinstance(databases, ServerDatabases) else "DuckDB; a write is refused"
    found = f"{len(schema.tables)} tables and views, {len(schema.foreign_keys)} foreign keys"
    return f"ok       database {name}: {found}; {account}"
