"""Grain pipeline from chunk numbers to batches, in threads and worker processes.

Axes: D local devices, B images per device, S height and width of the images in pixels.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import multiprocessing
from multiprocessing import connection
from multiprocessing.process import BaseProcess
import re
import signal
import threading
from typing import Generic, Self, TypeVar
import weakref

from absl import flags
import cv2
import grain
import numpy as np

from nfnets.data.layout import Chunk, Layout, Parallelism
from nfnets.data.sources.base import UnreadableRecordError
from nfnets.data.sources.retries import CancelledError
from nfnets.errors import UserError

# Chunks prefetched per thread, to keep the threads busy while a batch is assembled.
_CHUNKS_AHEAD = 4
# Finished chunks that each worker process may hold.
_WORKER_CHUNKS = 4
# Arrays below this size are pickled rather than copied to shared memory.
_MIN_SHARED_BYTES = 2**14
# Workers are killed after this time: Grain waits until they finish their current chunk,
# including all retries.
_EXIT_SECONDS = 5.0

T = TypeVar("T")


class BatchIterator(Generic[T], Iterator[T]):
    """Iterator over batches that owns threads and processes; close it after use.

    As a context manager it closes itself on exit. Any exception, including StopIteration,
    also closes it. Closing twice is allowed. While reads fail or hang in worker processes,
    closing takes 5 s and another 0.5 s per worker.
    """

    def __init__(
        self,
        chunk_numbers: range,
        load: Callable[[int], Chunk],
        layout: Layout,
        parallelism: Parallelism,
        finish: Callable[[Chunk], T],
        cancel: threading.Event,
    ) -> None:
        """Builds the pipeline and starts reading.

        Args:
          chunk_numbers: the chunks to load: whole batches.
          load: loads a chunk given its number; picklable.
          layout: layout of the chunks in the batches.
          parallelism: threads, processes and prefetching.
          finish: converts a host's batch, arrays of [D, B, ...], to the iterator's items.
          cancel: set when the iterator is closed.
        """
        self._finish = finish
        batches = _pipeline(chunk_numbers, load, layout, parallelism, cancel)
        others = set(multiprocessing.active_children())
        self._iterator: grain.DatasetIterator | None = _start(batches, parallelism.prefetch)
        self._close = weakref.finalize(
            self, _close, self._iterator, cancel, parallelism.workers, others
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Returns the next batch.

        Raises:
          StopIteration: after the last batch.
          UserError: a record cannot be read, or a worker process died.
        """
        if self._iterator is None:
            raise StopIteration
        try:
            return self._finish(next(self._iterator))
        except BaseException as error:
            self.close()
            _raise_user_error(error)
            raise

    def close(self) -> None:
        """Stops threads and worker processes."""
        self._iterator = None  # the last reference to the batches in shared memory
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _pipeline(
    chunk_numbers: range,
    load: Callable[[int], Chunk],
    layout: Layout,
    parallelism: Parallelism,
    cancel: threading.Event,
) -> grain.IterDataset:
    """Returns the Grain dataset of a host's batches."""
    cv2.setNumThreads(0)  # Grain's threads suffice
    threads = parallelism.num_threads
    ahead = threads * (1 if parallelism.workers else _CHUNKS_AHEAD)
    stream = (
        grain.MapDataset.range(chunk_numbers.start, chunk_numbers.stop)
        .map(load)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    )
    if parallelism.workers:
        if not flags.FLAGS.is_parsed():
            # Grain reads absl flags when it starts a process, which fails in notebooks.
            flags.FLAGS.mark_as_parsed()
        stream = grain.experimental.WithOptionsIterDataset(
            stream, grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES)
        ).mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=parallelism.workers, per_worker_buffer_size=_WORKER_CHUNKS
            ),
            worker_init_fn=_initialize_worker,
        )

    def stop_if_cancelled(chunk: Chunk) -> Chunk:
        # Otherwise closing waits until the current batch is complete.
        if cancel.is_set():
            raise CancelledError("the batches were closed")
        return chunk

    return stream.map(stop_if_cancelled).batch(
        layout.chunks_per_batch, batch_fn=_Join(layout.shard.local_devices)
    )


def _start(batches: grain.IterDataset, prefetch: int) -> grain.DatasetIterator:
    """Starts the workers and the thread that prefetches finished batches."""
    iterator = iter(batches)
    # Without these two calls, Grain starts the workers one after the other, each when its
    # first chunk is needed: 1.5 s per worker.
    iterator.get_state()
    iterator.start_prefetch()
    if prefetch:
        iterator = grain.experimental.ThreadPrefetchDatasetIterator(
            iterator, prefetch_buffer_size=prefetch
        )
        iterator.start_prefetch()
    return iterator


@dataclasses.dataclass(frozen=True)
class _Join:
    """Joins a batch's chunks into arrays of [devices, B, ...]."""

    devices: int

    def __call__(self, chunks: Sequence[Chunk]) -> Chunk:
        columns = zip(*(chunk[:-1] for chunk in chunks), strict=True)
        images, labels, positions, real = (
            np.concatenate(column).reshape(self.devices, -1, *column[0].shape[1:])
            for column in columns
        )
        bad = tuple(record for chunk in chunks for record in chunk.bad)
        return Chunk(images, labels, positions, real, bad)


def _close(
    iterator: grain.DatasetIterator,
    cancel: threading.Event,
    workers: int,
    others: set[BaseProcess],
) -> None:
    """Closes an iterator and kills workers that do not exit.

    Args:
      iterator: the iterator.
      cancel: ends the retries in this process.
      workers: number of worker processes, which exit one after the other in 0.3 s each.
      others: child processes that are older than the iterator.
    """
    cancel.set()
    timer = threading.Timer(_EXIT_SECONDS + workers / 2, _kill_workers, [others])
    timer.daemon = True
    if workers:
        timer.start()
    iterator.close()
    timer.cancel()


def _kill_workers(others: set[BaseProcess]) -> None:
    """Kills Grain's worker processes, except `others`."""
    # Found here rather than at the start, since Grain starts them in the background.
    for process in set(multiprocessing.active_children()) - others:
        if process.name.startswith("grain-"):
            process.kill()


def _raise_user_error(error: BaseException) -> None:
    """Raises a UserError if the user can fix the cause of `error`."""
    if isinstance(error, UnreadableRecordError):
        raise UserError(f"cannot read {error}; repair or remove it") from error
    # Grain raises a plain RuntimeError for this.
    died = re.search(r"orker process .*terminated .*exit code (-?\d+)", str(error))
    if isinstance(error, RuntimeError) and died:
        code = int(died[1])
        raise UserError(
            f"a data worker process died with exit code {code} ({_death_cause(code)})"
        ) from error


def _death_cause(exit_code: int) -> str:
    """Returns the likely cause of a worker's exit and a remedy."""
    if exit_code == -signal.SIGKILL:
        return "killed, most likely out of memory: lower data.workers or data.prefetch"
    if exit_code == -signal.SIGBUS:
        return "shared memory is full: enlarge /dev/shm or set data.workers=0"
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"signal {name}: set data.workers=0 to find the cause"
    return "see its output above, or set data.workers=0 to find the cause"


def _initialize_worker(worker: int, workers: int) -> None:
    """Makes a worker process ignore Ctrl-C and exit with its parent."""
    del worker, workers
    cv2.setNumThreads(0)
    # Ctrl-C reaches every process of the terminal; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    """Kills this process when the process of `sentinel` ends."""
    connection.wait([sentinel])
    signal.raise_signal(signal.SIGKILL)
