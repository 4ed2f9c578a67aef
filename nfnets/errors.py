"""The one exception that stands for what a user can mend."""


class UserError(Exception):
    """Shown as one line, without a traceback.

    The message says what was wrong, where, and what to do about it.

    Attributes:
      exit_code: of the program: 2 for a mistake in the input, 1 for a run that failed.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        """See the class."""
        super().__init__(message)
        self.exit_code = exit_code
