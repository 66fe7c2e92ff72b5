"""The one error that users are meant to see."""

from typing import Self


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, a setting that does not fit.

    The message is one line that names the file or value and the remedy. The command line prints it without a
    traceback and exits with `exit_code`; as a library, catch it like any exception. Without a message, another process
    of the same run has told it.
    """

    exit_code = 2

    @classmethod
    def reported_elsewhere(cls, exit_code: int = 2) -> Self:
        """The same failure in a process that need not tell it again."""
        error = cls()
        error.exit_code = exit_code
        return error
