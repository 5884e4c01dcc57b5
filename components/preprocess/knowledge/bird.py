"""Reads BIRD's descriptions of columns: `<db_id>/database_description/<table>.csv`.

The published files are not all well-formed (AlibabaResearch/DAMO-ConvAI#52): some are not UTF-8, lack a column, or have
the name of no table. What cannot be used is left out with a warning, because users cannot change these files.
"""

import csv
from io import StringIO
from pathlib import Path

from chatmetrics.components import console
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.record_files import UTF_16
from chatmetrics.components.preprocess.knowledge.texts import description

NAME = "original_column_name"
TEXTS = ("column_name", "column_description")
VALUES = "value_description"


def read_bird(folder: Path) -> Descriptions:
    """Read the descriptions in the folder `database_description` of a database."""
    columns: dict[str, dict[str, str]] = {}
    values: dict[str, dict[str, str]] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv"):
        try:
            rows = csv.DictReader(StringIO(_text(path), newline=""))
            fields = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
            if NAME not in fields:
                console.warning(f"{path} is left out: it has no column {NAME}")
                continue
            for row in rows:
                name = (row[fields[NAME]] or "").strip()
                texts = [row[fields[key]] or "" for key in TEXTS if key in fields]
                # A line break separates values with their meanings.
                codes = "; ".join((row[fields[VALUES]] or "").splitlines()) if VALUES in fields else ""
                if name and (text := description(name, *texts)):
                    columns.setdefault(path.stem, {})[name] = text
                if name and (text := description(name, codes)):
                    values.setdefault(path.stem, {})[name] = text
        except (OSError, csv.Error) as error:
            console.warning(f"{path} is left out: {error}")
    return Descriptions(columns, values=values)


def _text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(UTF_16):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        console.warning(f"{path} is not UTF-8 text, and is read as Windows-1252")
        return data.decode("cp1252", errors="replace")
