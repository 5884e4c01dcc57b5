"""README.md of a dataset folder, with which `datasets.load_dataset` opens it, here or on the Hugging Face Hub."""

import json
from dataclasses import fields
from pathlib import Path

from chatmetrics.components.nl2sql.example import HELD_OUT, Example

NAME = "README.md"
NUMBERS = ("weight",)
TEXT = """\
---
{header}---

# A dataset of ChatMetrics

Questions about databases, and the SQL queries that answer them, as models are trained and scored on them. See
dataset_card.md for where they come from, how many there are, and what was left out. To read them:

```python
from datasets import load_dataset

dataset = load_dataset("FOLDER")
```
"""


def write_hub_card(dataset: Path) -> None:
    """Write README.md, whose header names the files with examples, their splits and their columns.

    Without it `load_dataset` would take every JSON file of the folder for examples. The header has the form of the
    Hub's dataset cards (https://huggingface.co/docs/hub/datasets-manual-configuration). Empty files are left out,
    because `load_dataset` refuses them.
    """
    paths = {"train": "train.jsonl", "dev": "dev.jsonl", "held_out": HELD_OUT}
    files = [{"split": split, "path": path} for split, path in paths.items() if _has_content(dataset / path)]
    if not files:
        return  # a dataset of databases without questions
    columns = [
        {"name": field.name, "dtype": "int64" if field.name in NUMBERS else "string"} for field in fields(Example)
    ]
    header = {
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"config_name": "default", "features": columns},
    }
    # JSON values are YAML values.
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in header.items())
    (dataset / NAME).write_text(TEXT.format(header=lines), encoding="utf-8")


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
