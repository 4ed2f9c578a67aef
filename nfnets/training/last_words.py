"""A last line of output for a process that cannot say it itself any more."""

import subprocess
import sys

# Reads until the other end of its pipe is closed, by whatever closes it.
_WATCHER = """
import sys
if not sys.stdin.buffer.read():
    print(sys.argv[1], file=sys.stderr)
"""


class LastWords:
    """A small process that prints a line if this one ends without a farewell.

    JAX's runtime aborts a process that has lost the coordinator; no Python code of it runs
    after that, and what it leaves on the screen ends with the stacks of its threads.
    """

    def __init__(self, line: str) -> None:
        """Starts the watcher; `line` goes to stderr."""
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHER, line],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is not for it
        )

    def farewell(self) -> None:
        """The line is not needed any more."""
        try:
            self._watcher.communicate(b"farewell")
        except OSError:  # somebody has ended the watcher
            return
