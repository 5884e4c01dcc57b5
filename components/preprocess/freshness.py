"""What stands for databases on servers in a run's cache key."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from chatmetrics.components import console
from chatmetrics.components.errors import UserError
from chatmetrics.components.nl2sql.databases.addresses import is_address, listed_at
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.preprocess.remote import local_source
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.preprocess.sources import read_source


def freshness(settings: PreprocessSettings) -> list[str]:
    """The day, in UTC, and a hash of the schemas of the databases at addresses; nothing if all databases are files.

    A server cannot be hashed like a file, so its content is read again on another day, or if a schema changed. The
    schemas are those of listed databases or, for an address with `{db_id}`, of the databases that the questions are
    about. If one cannot be read from here, a warning says so, and the day alone stands for all.
    """
    addresses = [where for where in (settings.databases, settings.translate_to) if is_address(where)]
    if not addresses:
        return []
    names = [] if all(map(listed_at, addresses)) else _asked(settings)
    return [datetime.now(UTC).date().isoformat(), *(_schemas(where, names, settings) for where in addresses)]


def _asked(settings: PreprocessSettings) -> list[str]:
    """The databases that questions are about."""
    questions = settings.model_copy(update={"knowledge": "", "held_out": {}})
    try:
        with local_source(questions) as local:
            return sorted({record.db_id for record in read_source(local).records})
    except UserError:
        return []  # preprocess reports it


def _schemas(where: str, names: Sequence[str], settings: PreprocessSettings) -> str:
    """A hash of the schemas at an address; empty if one of them cannot be read."""
    try:
        with open_databases(where, settings.query_seconds) as databases:
            texts = [f"{name}: {databases.schema(name)}" for name in sorted(listed_at(where)) or names]
    except UserError as error:
        console.warning(f"a change of the databases' schemas is noticed tomorrow, not today: {error}")
        return ""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
