"""What all client programs share: each use gets its own base URL, and its result is printed as a line of JSON."""

import json
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version

MODEL, JSON_MODEL, OTHER_MODEL = "hotel", "report", "unknown"
QUESTION = "All hotels?"
SYSTEM = "Answer with SQL."
STOP = " ORDER"
TOKENS = 3
# The model is forced to answer with exactly this object.
SCHEMA = {
    "title": "Report",
    "type": "object",
    "properties": {"sql": {"type": "string", "enum": ["SELECT 1"]}},
    "required": ["sql"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "rooms",
        "description": "Number of rooms of a hotel",
        "parameters": {"type": "object", "properties": {"hotel": {"type": "string"}}, "required": ["hotel"]},
    },
}


def run(client: str, package: str, uses: Mapping[str, Callable[[str, str], object]]) -> None:
    """Run the uses of a client, and print a line of JSON for each.

    Args:
        client: Name of the client in the table, which is also the first part of the paths that it requests.
        package: The package whose version is printed.
        uses: A function for each use. It gets a base URL and a token, and returns what the client returned.
    """
    endpoint, token = os.environ["CLIENT_ENDPOINT"], os.environ["CLIENT_TOKEN"]
    for use, ask in uses.items():
        try:
            outcome = {"result": ask(f"{endpoint}/{client}/{use}", "wrong" if use == "wrong_token" else token)}
        except Exception as error:  # noqa: BLE001 - whatever a client raises is the result
            outcome = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"client": client, "version": version(package), "use": use, **outcome}), flush=True)
