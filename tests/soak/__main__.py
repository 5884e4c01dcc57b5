"""A long load: pods with a real Ollama on this machine, or a release in a cluster; see docs/soak.md.

    python -m tests.soak [--minutes N] [--seed N] [--clients N] [--output FOLDER]
    python -m tests.soak --endpoint URL --token-file FILE --kubectl-namespace NAMESPACE [--release NAME] ...

The exit status is 1 if there are violations.
"""

import argparse
import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

from tests.soak.cluster import soak_cluster
from tests.soak.local import soak_here
from tests.soak.report import Report


def main() -> int:
    """Run the soak and print its report."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Load pods for minutes and count everything."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="duration of the load")
    parser.add_argument("--seed", type=int, default=0, help="seed of requests and events")
    parser.add_argument("--clients", type=int, default=16, help="number of clients")
    parser.add_argument("--output", type=Path, default=Path(".cache/soak"), help="folder for report, samples and logs")
    parser.add_argument("--endpoint", help="URL of a release in a cluster; the default is pods on this machine")
    parser.add_argument("--token-file", type=Path, help="with --endpoint: file with a client's token")
    parser.add_argument("--kubectl-namespace", help="with --endpoint: the release's namespace")
    parser.add_argument("--release", default="hotel", help="with --endpoint: the release's name")
    options = parser.parse_args()
    if options.endpoint and not (options.token_file and options.kubectl_namespace):
        parser.error("--endpoint needs --token-file and --kubectl-namespace")
    if not options.endpoint and not shutil.which("ollama"):
        parser.error("ollama is not on the PATH")
    options.output = options.output.absolute()
    options.output.mkdir(parents=True, exist_ok=True)
    report = Report(options.seed)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    if options.endpoint:
        asyncio.run(soak_cluster(options, report))
    else:
        os.environ["AWS_MAX_ATTEMPTS"] = "30"  # as in the chart's container `fetch`
        asyncio.run(soak_here(options, report))
    report.write(options.output)
    print(f"\n{report.text()}\n\nreport, samples and logs: {options.output}", flush=True)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
