"""The one error that users are meant to see."""


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, a setting that does not fit.

    The message is one line that names the file or value and the remedy. The command line prints it without a
    traceback and exits with `exit_code`; as a library, catch it like any exception.
    """

    exit_code = 2
