"""One run per workdir."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import time

from nfnets.errors import UserError

LOCK_FILE = "train.lock"


class WorkdirLock(contextlib.AbstractContextManager):
    """Holds a workdir for this process, until the end of a context or of the process.

    A POSIX record lock, which the kernel drops with the process however that ends: a
    lock file that a dead process left behind holds nobody up. The file says who has it.
    """

    def __init__(self, workdir: pathlib.Path) -> None:
        """Takes the lock.

        Raises:
          UserError: another process has it.
        """
        self._path = pathlib.Path(workdir) / LOCK_FILE
        self._file = self._path.open("a+")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self._file.seek(0)
                holder = _describe(self._file.read())
                self._file.close()
                raise UserError(
                    f"{workdir} is in use by another train.py ({holder}); stop that one or "
                    "choose another --workdir"
                ) from None
            print(  # some network file systems have no locks
                f"WARNING: cannot lock {self._path} ({error.strerror}): take care that no "
                "other train.py uses this workdir",
                file=sys.stderr,
            )
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            self._file.truncate(0)
            os.write(self._file.fileno(), json.dumps(holder).encode())

    def __exit__(self, *exception: object) -> None:
        """Lets go. The empty file stays: removing it could take it from the next run."""
        self._file.truncate(0)
        self._file.close()


def _describe(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError):  # it is just writing it
        return "unknown process"
