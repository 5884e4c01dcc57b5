"""The few errors a person sees: one line naming the thing and what to do, and an exit status that means something."""

import signal

# What SIGTERM ended although all was well: started again, it goes on. A process without a word on signals has it too.
EXIT_INTERRUPTED = 128 + signal.SIGTERM


class UserError(Exception):
    """Something the person at the keyboard can mend. `str(error)` is one line: what was wrong, where, what to do."""

    exit_status = 1


class InputError(UserError):
    """A path, record, recipe value or database that cannot be used as it is."""

    exit_status = 3


class GateError(UserError):
    """The run worked, but the student is not good enough to be served."""

    exit_status = 4


class ServiceError(UserError):
    """A program or endpoint that is needed did not start, answer or exist."""

    exit_status = 5


class StorageError(UserError):
    """The artifact store or the disk refused: full, not writable, wrong checksum, already published."""

    exit_status = 6
