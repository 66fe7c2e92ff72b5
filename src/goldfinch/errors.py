"""The one error that users are meant to see."""

from typing import Self


class UserError(Exception):
    """An error that the user can fix: bad input, a missing file, an invalid setting.

    The message is one line that names the file or value and the remedy. The command line prints it without a
    traceback and exits with `exit_code`; as a library, catch it like any exception. Without a message, another process
    of the same run has reported it.
    """

    exit_code = 2

    @classmethod
    def reported_elsewhere(cls, exit_code: int = 2) -> Self:
        """The same failure in a process that need not report it again."""
        error = cls()
        error.exit_code = exit_code
        return error
