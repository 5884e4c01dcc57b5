"""Errors shown to users: one line that names the problem and what to do, and an exit status for each kind."""

import signal

from chatmetrics.components.redaction import redacted

# A process that SIGTERM interrupted; it resumes when it is started again. The shell reports the same status for a
# process that does not handle the signal.
EXIT_INTERRUPTED = 128 + signal.SIGTERM


class UserError(Exception):
    """An error that the user can fix. `str(error)` is one line, without secrets: what was wrong, where, what to do."""

    exit_status = 1

    def __init__(self, message: object) -> None:
        super().__init__(redacted(message))


class InputError(UserError):
    """A path, record, recipe value or database is not usable."""

    exit_status = 3


class GateError(UserError):
    """The run worked, but the student is not accurate enough to be served."""

    exit_status = 4


class ServiceError(UserError):
    """A required program or endpoint does not exist, did not start or does not answer."""

    exit_status = 5


class StorageError(UserError):
    """The artifact store or the disk failed: full, not writable, wrong checksum, already published."""

    exit_status = 6
