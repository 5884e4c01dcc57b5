"""The `chatmetrics` command. A command imports what it needs when it runs, so that `--help` is quick.

Each module next to this one has a Typer application with the commands of one kind; here they are put together, and
errors become one line and an exit status.
"""

import errno
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import typer

from chatmetrics.components.errors import InputError, StorageError, UserError
from chatmetrics.components.redaction import one_line, redacted
from chatmetrics.components.storage.files import full_disk
from chatmetrics.pipelines.cli import cluster, deploy, doctor, estimate, images, run, settings, steps
from chatmetrics.pipelines.cli.options import CLUSTER

EXIT_CODES = (
    "Exit codes: 0 success; 1 a bug, or a step failed; 2 wrong usage; 3 invalid input; 4 the student is below the "
    "gate; 5 a service did not start or answer; 6 storage or disk error; 130 (Ctrl-C) or 143 (SIGTERM) interrupted: "
    "the same command resumes."
)
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}

app = typer.Typer(
    help="Distill an NL2SQL ability into a small local model, and serve it.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (run, settings, estimate, steps, cluster, doctor, deploy):
    app.add_typer(commands.app)
app.add_typer(images.app, name="images", rich_help_panel=CLUSTER)


def main() -> NoReturn:
    """Run the command line. An error that a person can fix is one line and an exit status."""
    sys.excepthook = _report_bug
    try:
        typer.main.get_command(app)(prog_name="chatmetrics")
    except Exception as error:
        if shown := full_disk(error) or (error if isinstance(error, UserError) else None):
            _fail(str(shown), shown.exit_status)
        if isinstance(error, OSError):
            _fail_of_os_error(error)
        raise
    sys.exit(0)


def _fail_of_os_error(error: OSError) -> NoReturn:
    where = f"{error.filename}: " if error.filename else ""
    kind = StorageError if error.errno in DISK_ERRORS else InputError
    _fail(f"{where}{error.strerror or error}", kind.exit_status)


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line and write the traceback to a file, instead of Python's traceback; Python then exits with 1."""
    path = Path(tempfile.gettempdir()) / f"chatmetrics-error-{time.strftime('%Y%m%d-%H%M%S')}.log"
    path.write_text(redacted("".join(traceback.format_exception(kind, error, trace))), "utf-8")
    _print_error(f"unexpected {kind.__name__}: {one_line(error)}; traceback: {path}")


def _fail(message: str, exit_status: int) -> NoReturn:
    _print_error(message)
    sys.exit(exit_status)


def _print_error(message: str) -> None:
    """Print as `console.error` does, in red on a terminal."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
