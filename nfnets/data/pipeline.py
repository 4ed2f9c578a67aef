"""Batches made in threads and worker processes, each chunk where its batch keeps it.

Axes: D local devices, B images per device, S height and width of the images in pixels.
"""

from collections import deque
from collections.abc import Callable, Iterator
import threading
from typing import Generic, Self, TypeVar
import weakref

import cv2
import numpy as np

from nfnets.data.buffers import Buffers
from nfnets.data.layout import Chunk, Layout, Parallelism
from nfnets.data.sources.base import UnreadableRecordError
from nfnets.data.workers import ChunkFutures, Loader, Threads, Workers
from nfnets.errors import UserError

T = TypeVar("T")


class BatchIterator(Generic[T], Iterator[T]):
    """Iterator over batches that owns threads and processes; close it after use.

    As a context manager it closes itself on exit. Any exception, including StopIteration,
    also closes it. Closing twice is allowed. The memory of a batch's images is used again
    once nothing refers to them.
    """

    def __init__(
        self,
        batch_numbers: range,
        load: Callable[[int, np.ndarray], Chunk],
        layout: Layout,
        image_size: int,
        parallelism: Parallelism,
        finish: Callable[[np.ndarray, Chunk], T],
        cancel: threading.Event,
    ) -> None:
        """Starts reading.

        Args:
          batch_numbers: the batches to load.
          load: loads a chunk given its number and the array for its images; picklable.
          layout: layout of the chunks in the batches.
          image_size: S.
          parallelism: threads, processes and prefetching.
          finish: converts a host's images, uint8 [D, B, S, S, 3], and the rest of its batch
            to the iterator's items.
          cancel: set when the iterator is closed.
        """
        cv2.setNumThreads(0)  # the threads suffice
        self._layout, self._finish = layout, finish
        self._numbers = iter(batch_numbers)
        self._buffers = Buffers(
            (layout.host_batch, image_size, image_size, 3),
            is_shared=parallelism.workers > 0,
        )
        loader = Loader(load, layout, self._buffers)
        self._pool: Threads | Workers
        if parallelism.workers:
            self._pool = Workers(loader, parallelism)
        else:
            self._pool = Threads(loader, parallelism)
        self._close = weakref.finalize(self, _close, self._pool, cancel)
        self._pending: deque[tuple[np.ndarray, ChunkFutures]] = deque()
        for _ in range(parallelism.prefetch + 1):
            self._start_batch()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Returns the next batch.

        Raises:
          StopIteration: after the last batch.
          UserError: a record cannot be read, or a worker process died.
        """
        try:
            if not self._pending:
                raise StopIteration
            images, futures = self._pending[0]
            chunks = [future.result() for future in futures]
            self._pending.popleft()
            self._start_batch()
            return self._finish(*self._join(images, chunks))
        except UnreadableRecordError as error:
            self.close()
            raise UserError(f"cannot read {error}; repair or remove it") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops threads and worker processes."""
        self._close()
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start_batch(self) -> None:
        """Submits the chunks of the next batch, if there is one."""
        number = next(self._numbers, None)
        if number is None:
            return
        slot, images = self._buffers.take()
        count = self._layout.chunks_per_batch
        chunks = range(number * count, (number + 1) * count)
        self._pending.append((images, [self._pool.submit(n, slot) for n in chunks]))

    def _join(self, images: np.ndarray, chunks: list[Chunk]) -> tuple[np.ndarray, Chunk]:
        """Returns a batch with the axes [D, B, ...]."""
        devices = self._layout.shard.local_devices
        labels, positions, real = (
            np.concatenate(column).reshape(devices, -1)
            for column in zip(*(chunk[:-1] for chunk in chunks), strict=True)
        )
        bad = tuple(record for chunk in chunks for record in chunk.bad)
        images = images.reshape(devices, -1, *images.shape[1:])
        return images, Chunk(labels, positions, real, bad)


def _close(pool: Threads | Workers, cancel: threading.Event) -> None:
    """Ends the retries in this process, then the threads or processes."""
    cancel.set()
    pool.close()
