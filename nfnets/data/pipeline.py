"""The Grain pipeline: chunk numbers in, batches out, threads and processes between.

A chunk is a few consecutive examples of this host's part of a batch: what one thread makes
at a go. Which examples they are follows from the chunk's number alone (`Layout`).

Letters of shapes: D local devices, B images per device, S side of the images, pixels.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from multiprocessing import connection, parent_process
import os
import re
import signal
import threading
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar
import weakref

from absl import flags
import cv2
import grain
import numpy as np

from nfnets.data.closing import BatchesClosedError, Closing
from nfnets.data.records import UnreadableRecordError
from nfnets.errors import UserError

# Images in a chunk, at most: few enough to spread a batch over the threads, many enough
# that handing work to a thread costs nothing beside the decoding.
_MAX_CHUNK = 8
# Chunks made ahead, per thread: the threads go on while a batch is being put together.
_CHUNKS_AHEAD = 4
# Finished chunks that each worker process holds ready, and its reader in this process.
_WORKER_CHUNKS = 4
# Smaller arrays travel between processes by pickle, not in shared memory of their own.
_MIN_SHARED_BYTES = 2**14

# Where the user does not say how many threads.
_THREADS_PER_CORE = 2
_MAX_THREADS = 16  # Python's lock keeps more from being of use.

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostShard:
    """Which part of every global batch this host makes.

    The global batch is laid out over all devices in order: device d of host h holds a
    contiguous range of it.

    Attributes:
        process_index: this host, in [0, process_count).
        process_count: hosts.
        local_devices: devices per host.
    """

    process_index: int = 0
    process_count: int = 1
    local_devices: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.process_index < self.process_count or self.local_devices < 1:
            raise ValueError(f"impossible shard {self}")

    @property
    def num_devices(self) -> int:
        """Devices of all hosts."""
        return self.process_count * self.local_devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallelism:
    """How many hands make the batches; changes speed and memory, never a batch.

    Attributes:
        threads: that read and decode, per worker process (or in this process); None: two
            per core and at most 16 of them; 0: the caller's thread does it. More than
            that helps only where reading a record takes long.
        workers: processes that read and decode; 0: this process does.
        prefetch: finished batches to hold ready.
    """

    threads: int | None = None
    workers: int = 0
    prefetch: int = 2

    def __post_init__(self) -> None:
        for field in ("threads", "workers", "prefetch"):
            if (getattr(self, field) or 0) < 0:
                raise UserError(f"data.{field}={getattr(self, field)} must not be negative")

    @property
    def num_threads(self) -> int:
        """Threads per process."""
        if self.threads is not None:
            return self.threads
        # With 16 threads on two cores, decoded images push each other out of the cache:
        # 1,760 images/s in place of 2,070 with four.
        per_process = _THREADS_PER_CORE * _available_cores() // max(1, self.workers)
        return max(1, min(_MAX_THREADS, per_process))


def _available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Chunk(NamedTuple):
    """Consecutive examples of one host; a pytree, so that Grain can ship it.

    A whole batch of one host has the same form, with n = D * B or [D, B] in place of [n].

    Attributes:
        images: uint8 [n, S, S, 3], RGB.
        labels: int32 [n].
        index: int32 [n], positions in the global batch.
        real: bool [n], False for padding.
        bad: unreadable records met on the way, as (name, reason).
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    real: np.ndarray
    bad: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the examples of a host's chunks lie in the stream of all examples.

    Attributes:
        batch_size: examples per global batch, a multiple of all devices.
        chunk: examples per chunk, a divisor of the host's part of a batch.
        shard: which host this is.
    """

    batch_size: int
    chunk: int
    shard: HostShard

    @classmethod
    def choose(cls, batch_size: int, shard: HostShard, read: Parallelism) -> Self:
        """Chooses equal chunks, one at least for every thread if the batch allows."""
        host_batch = batch_size // shard.process_count
        hands = max(1, read.num_threads) * max(1, read.workers)
        limit = max(1, min(_MAX_CHUNK, host_batch // hands))
        chunk = max(size for size in range(1, limit + 1) if host_batch % size == 0)
        return cls(batch_size=batch_size, chunk=chunk, shard=shard)

    @property
    def host_batch(self) -> int:
        """Examples per batch on this host."""
        return self.batch_size // self.shard.process_count

    @property
    def chunks_per_batch(self) -> int:
        """Chunks per batch on this host."""
        return self.host_batch // self.chunk

    def locate(self, chunk_number: int) -> tuple[int, range]:
        """Returns the step that a chunk belongs to, and its positions in that batch.

        Args:
            chunk_number: of this host, counted from the start of the stream.
        """
        step, chunk = divmod(chunk_number, self.chunks_per_batch)
        start = self.shard.process_index * self.host_batch + chunk * self.chunk
        return step, range(start, start + self.chunk)


class BatchIterator(Generic[T], Iterator[T]):
    """Batches, and the threads and processes behind them; to be closed after use.

    A context manager: leaving it closes it. Any exception, the end of the batches
    included, closes it too, and closing twice is harmless.
    """

    def __init__(
        self,
        numbers: range,
        load: Callable[[int, Callable[[float], None]], Chunk],
        layout: Layout,
        read: Parallelism,
        finish: Callable[[Chunk], T],
    ) -> None:
        """Builds the pipeline and starts to read.

        Args:
            numbers: chunks to make, whole batches of them.
            load: makes a chunk from its number, and waits with the function that it gets,
                which raises an error when the batches are closed; picklable.
            layout: of the chunks in the batches.
            read: threads, processes and buffers.
            finish: turns a batch, arrays of [D, B, ...], into what the caller wants.
        """
        self._finish = finish
        closing = Closing()
        self._iterator: grain.DatasetIterator | None = _start(
            _pipeline(numbers, load, layout, read, closing), read.prefetch
        )
        self._close = weakref.finalize(self, _close, self._iterator, closing)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Returns the next batch.

        Raises:
            StopIteration: after the last one.
            UserError: a record cannot be read, or a worker process died.
        """
        if self._iterator is None:
            raise StopIteration
        try:
            return self._finish(next(self._iterator))
        except BaseException as error:
            self.close()
            _raise_for_user(error)
            raise

    def close(self) -> None:
        """Stops threads and worker processes."""
        # Shared memory is freed with the last reference to the iterator.
        self._iterator = None
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _pipeline(
    numbers: range,
    load: Callable[[int, Callable[[float], None]], Chunk],
    layout: Layout,
    read: Parallelism,
    closing: Closing,
) -> grain.IterDataset:
    """Chunk numbers -> chunks, by threads or processes -> batches."""
    _prepare_process()
    ahead = read.num_threads * (1 if read.workers else _CHUNKS_AHEAD)
    stream = (
        grain.MapDataset.range(numbers.start, numbers.stop)
        .map(functools.partial(load, sleep=closing.sleep))
        .to_iter_dataset(
            grain.ReadOptions(num_threads=read.num_threads, prefetch_buffer_size=ahead)
        )
    )
    if read.workers:
        if not flags.FLAGS.is_parsed():
            # Grain asks absl's flags before it starts a process; in a notebook or a test
            # nobody has parsed them.
            flags.FLAGS.mark_as_parsed()
        stream = grain.experimental.WithOptionsIterDataset(
            stream, grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES)
        ).mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=read.workers, per_worker_buffer_size=_WORKER_CHUNKS
            ),
            worker_init_fn=_prepare_worker,
        )

    def stop_when_closed(chunk: Chunk) -> Chunk:
        # Otherwise closing would wait until the batch in the making is complete.
        if closing.is_set():
            raise BatchesClosedError("the batches were closed")
        return chunk

    return stream.map(stop_when_closed).batch(
        layout.chunks_per_batch, batch_fn=_Join(layout.shard.local_devices)
    )


def _start(batches: grain.IterDataset, prefetch: int) -> grain.DatasetIterator:
    """Starts all threads and processes, and one that holds finished batches ready."""
    iterator = iter(batches)
    # Without these two, Grain starts each worker process when its first chunk is asked
    # for, one after the other: 1.5 s times their number.
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
    """Puts the chunks of a batch together, as arrays of [devices, B, ...]."""

    devices: int

    def __call__(self, chunks: Sequence[Chunk]) -> Chunk:
        columns = zip(*(chunk[:-1] for chunk in chunks), strict=True)
        joined = (np.concatenate(column) for column in columns)
        return Chunk(
            *(array.reshape(self.devices, -1, *array.shape[1:]) for array in joined),
            bad=tuple(record for chunk in chunks for record in chunk.bad),
        )


def _close(iterator: grain.DatasetIterator, closing: Closing) -> None:
    closing.set()
    iterator.close()
    closing.clear()


def _raise_for_user(error: BaseException) -> None:
    """Raises a UserError if `error` is something that a user can mend."""
    if isinstance(error, UnreadableRecordError):
        raise UserError(f"cannot read {error}; repair or remove it") from error
    # Grain has no type for this one.
    died = re.search(r"orker process .*terminated .*exit code (-?\d+)", str(error))
    if isinstance(error, RuntimeError) and died:
        code = int(died[1])
        raise UserError(
            f"a data worker process died with exit code {code} ({_death_cause(code)})"
        ) from error


def _death_cause(exit_code: int) -> str:
    """What most likely ended a process, and what to do about it."""
    if exit_code == -signal.SIGKILL:
        return "killed, most likely out of memory: lower data.workers or data.prefetch"
    if exit_code == -signal.SIGBUS:
        return "shared memory is full: enlarge /dev/shm or set data.workers=0"
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"signal {name}: set data.workers=0 to find out why"
    return "see its output above, or set data.workers=0 to find out why"


def _prepare_process() -> None:
    """Keeps OpenCV from starting threads of its own beside Grain's."""
    cv2.setNumThreads(0)


def _prepare_worker(worker: int, workers: int) -> None:
    """Sets up a worker process: quiet on Ctrl-C, gone when its parent is."""
    del worker, workers
    _prepare_process()
    # Ctrl-C reaches every process of the terminal; the parent alone decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        watch = threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True)
        watch.start()


def _exit_with(sentinel: int) -> None:
    """Ends this process as soon as the one behind `sentinel` has ended."""
    connection.wait([sentinel])
    signal.raise_signal(signal.SIGKILL)
