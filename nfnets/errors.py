"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Input that a user can mend: shown as one line, without a traceback, exit code 2.

    The message says what was wrong, where, and what to do about it.
    """
