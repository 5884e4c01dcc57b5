"""Commands of the chart's containers: `python3 -m chatmetrics.components.serve fetch|proxy|smoke ...`."""

import argparse
import os
import sys
from pathlib import Path

from chatmetrics.components.console import error
from chatmetrics.components.errors import UserError
from chatmetrics.components.serve.release import read_release

OLLAMA = "http://127.0.0.1:11434"


def main() -> None:
    """Run one of the commands. A UserError ends it with one line and the exit status of the command line."""
    parser = argparse.ArgumentParser(prog="chatmetrics.components.serve")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("fetch", help="fetch the models to the volume").add_argument("release", type=Path)
    proxy = verbs.add_parser("proxy", help="run the models' acceptance tests and serve requests")
    proxy.add_argument("release", type=Path)
    proxy.add_argument("--port", type=int, default=8080)
    proxy.add_argument("--management-port", type=int, default=8081)
    verbs.add_parser("smoke", help="ask each model a question of its acceptance test").add_argument("endpoint")
    try:
        _run(parser.parse_args())
    except UserError as failure:
        error(failure)
        sys.exit(failure.exit_status)


def _run(given: argparse.Namespace) -> None:
    """Run a command. Its module is imported only then, because the init container does not need a web server."""
    environment = os.environ
    if given.verb == "fetch":
        from chatmetrics.components.serve.volume.fetch import fetch

        fetch(read_release(given.release), int(environment.get("CHATMETRICS_MEMORY_LIMIT", "0")))
    elif given.verb == "proxy":
        from chatmetrics.components.inference.server import available_cores
        from chatmetrics.components.serve.pod.pod import ModelPod

        threads = int(environment.get("CHATMETRICS_THREADS", "0")) or available_cores()
        ollama = environment.get("CHATMETRICS_OLLAMA", OLLAMA)
        ModelPod(read_release(given.release), ollama, threads, given.port, given.management_port).run()
    else:
        from chatmetrics.components.serve.smoke import smoke

        smoke(given.endpoint, environment.get("CHATMETRICS_TOKEN", ""))


if __name__ == "__main__":
    main()
