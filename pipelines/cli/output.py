"""Standard output of the commands: tables fit the terminal, and have a fixed, large width in a pipe."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_IN_A_PIPE = 160


def output_console() -> "Console":
    """A Rich console for standard output."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH_IN_A_PIPE)
