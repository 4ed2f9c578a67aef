"""The error for mistakes in a user's input."""


class UserError(ValueError):
    """Error caused by user input; programs show it as one line, without a traceback.

    The message says what was wrong, where, and what to do about it.

    Attributes:
      exit_code: of a program that ends with this error: 2 for invalid input, 1 for a run
        that failed.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        """See the class."""
        super().__init__(message)
        self.exit_code = exit_code
