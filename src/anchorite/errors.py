"""The errors that a user can cause or must act on, each with the exit code of the command line.

They are `ValueError`s, so that library users can catch them as usual; the command line prints their message alone
(no traceback unless --debug) and exits with `exit_code`. A message names file, line, value and remedy.
"""


class AnchoriteError(ValueError):
    """Base of all errors that end a command with a message instead of a traceback."""

    exit_code = 2


class InputError(AnchoriteError):
    """Bad input or usage: a label, a recipe key, a path, a flag."""

    exit_code = 2


class DivergedError(AnchoriteError):
    """Training diverged: loss or gradients stayed non-finite."""

    exit_code = 3


class StorageError(AnchoriteError):
    """The disk or a permission stood in the way; nothing that existed was harmed."""

    exit_code = 4


class UnsafeFileError(AnchoriteError):
    """A file was refused because reading it could run code or exhaust memory."""

    exit_code = 5


class WorkerError(AnchoriteError):
    """A data worker or a rank died, hung or raised."""

    exit_code = 6


class ReportedByPeer(WorkerError):
    """What ends this rank was told by another one; exit_code is that of the cause."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("told by another rank")
        self.exit_code = exit_code
