"""Memory for the images of batches, shared with worker processes and used again.

Fresh memory costs more than decoding a small image: the system clears every page.
"""

import mmap
from multiprocessing import reduction
import os
import tempfile
from typing import IO, Any
import weakref

import numpy as np


class Buffers:
    """Arrays of one shape.

    Shared ones lie in a file in memory that has no name and cannot be left behind. Pickled
    for a new process, it maps the same memory there.
    """

    def __init__(self, shape: tuple[int, ...], *, is_shared: bool) -> None:
        """Creates no array yet.

        Args:
          shape: of the arrays, uint8.
          is_shared: with other processes. The system's limit on the size of files
            (`ulimit -f`) then holds for all arrays together.
        """
        self._shape = shape
        pages = -(-int(np.prod(shape)) // mmap.ALLOCATIONGRANULARITY)
        self._bytes = pages * mmap.ALLOCATIONGRANULARITY
        self._file: IO[bytes] | None = None
        # Unlike /dev/shm, memory files are not limited in containers.
        if is_shared and hasattr(os, "memfd_create"):
            self._file = os.fdopen(os.memfd_create("batches"), "r+b")
        elif is_shared:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the object)
        self._maps: dict[int, mmap.mmap] = {}
        self._free: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        assert self._file is not None
        return self.__dict__ | {
            "_file": reduction.DupFd(self._file.fileno()),
            "_maps": {},
            "_free": [],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _file=os.fdopen(state["_file"].detach(), "r+b"))

    def take(self) -> tuple[int, np.ndarray]:
        """Returns an array that nothing else uses, and its slot, for `array`.

        It is free again when neither it nor a view of it is referenced.
        """
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._maps)
            if self._file is not None:
                os.ftruncate(self._file.fileno(), (slot + 1) * self._bytes)
        whole = self._whole(slot)
        # NumPy's views refer to `whole`, JAX's arrays to the views.
        weakref.finalize(whole, self._free.append, slot).atexit = False
        return slot, whole.reshape(self._shape)

    def array(self, slot: int) -> np.ndarray:
        """Returns the array of a slot in use, here or in the process that took it."""
        return self._whole(slot).reshape(self._shape)

    def _whole(self, slot: int) -> np.ndarray:
        """Returns the memory of a slot, uint8 [n]."""
        if slot not in self._maps:
            if self._file is None:
                self._maps[slot] = mmap.mmap(-1, self._bytes)
            else:
                self._maps[slot] = mmap.mmap(
                    self._file.fileno(), self._bytes, offset=slot * self._bytes
                )
        return np.frombuffer(self._maps[slot], np.uint8, int(np.prod(self._shape)))
