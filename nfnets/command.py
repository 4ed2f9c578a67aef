"""What the command lines without a config file have in common."""

import argparse
from collections.abc import Callable
import os
import sys
from typing import NoReturn

from nfnets.errors import UserError


class Parser(argparse.ArgumentParser):
    """Takes --name=value; a mistake is one line on stderr and exit code 2."""

    def __init__(self, module: str, description: str) -> None:
        """Prepares the command `python -m {module}`."""
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Called by argparse for what it cannot parse."""
        raise UserError(f"{message} (--help lists the options)")


def complain(error: Exception) -> int:
    """Shows a user's mistake as one line on stderr; returns the exit code for it."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return error.exit_code if isinstance(error, UserError) else 2


def run(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and exits with its result.

    A `UserError` is shown as one line on stderr and ends with its exit code, an interrupt
    from the keyboard with 130.
    """
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(complain(error))
    except BrokenPipeError:  # as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def positive_int(text: str) -> int:
    """Reads a count of at least 1, for `add_argument(type=...)`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value
