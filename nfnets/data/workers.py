"""Threads and worker processes that load chunks."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import dataclasses
import multiprocessing
from multiprocessing.connection import Connection
import os
import pickle
import signal
import threading
import traceback
from typing import TypeAlias

import cv2
import numpy as np

from nfnets.data.buffers import Buffers
from nfnets.data.layout import Chunk, Layout, Parallelism
from nfnets.errors import UserError

# A killed process ends at once, unless the system is busy with a read for it.
_EXIT_SECONDS = 5.0

ChunkFutures: TypeAlias = list[Future[Chunk]]


@dataclasses.dataclass(frozen=True)
class Loader:
    """Loads a chunk into the memory of its batch.

    Attributes:
      load: loads a chunk given its number and the array for its images.
      layout: layout of the chunks in the batches.
      buffers: memory of the batches.
    """

    load: Callable[[int, np.ndarray], Chunk]
    layout: Layout
    buffers: Buffers

    def __call__(self, number: int, slot: int) -> Chunk:
        """Loads chunk `number` of the batch in a slot of the buffers."""
        start = number % self.layout.chunks_per_batch * self.layout.chunk
        images = self.buffers.array(slot)[start : start + self.layout.chunk]
        return self.load(number, images)


class Threads:
    """Loads chunks in threads of this process."""

    def __init__(self, loader: Loader, parallelism: Parallelism) -> None:
        """Starts threads when they are needed."""
        self._loader = loader
        self._pool = ThreadPoolExecutor(max(1, parallelism.num_threads))

    def submit(self, number: int, slot: int) -> Future[Chunk]:
        """Starts to load chunk `number` of the batch in `slot`."""
        return self._pool.submit(self._loader, number, slot)

    def close(self) -> None:
        """Waits for the records that are being read."""
        self._pool.shutdown(cancel_futures=True)


class Workers:
    """Loads chunks in processes with threads of their own."""

    def __init__(self, loader: Loader, parallelism: Parallelism) -> None:
        """Starts the processes."""
        context = multiprocessing.get_context("spawn")
        self._futures: list[dict[int, Future[Chunk]]] = []
        self._failing = threading.Lock()
        self._pipes, self._processes, self._receivers = [], [], []
        threads = max(1, parallelism.num_threads)
        for worker in range(parallelism.workers):
            pipe, far_end = context.Pipe()
            process = context.Process(
                target=_work, args=(far_end, loader, threads), daemon=True
            )
            process.start()
            far_end.close()  # so that the end of the process ends the pipe
            self._futures.append({})
            self._pipes.append(pipe)
            self._processes.append(process)
            self._receivers.append(
                threading.Thread(target=self._receive, args=(worker,), daemon=True)
            )
            self._receivers[-1].start()

    def submit(self, number: int, slot: int) -> Future[Chunk]:
        """Starts to load chunk `number` of the batch in `slot`."""
        future: Future[Chunk] = Future()
        # The fastest worker has the fewest chunks left.
        worker = min(range(len(self._pipes)), key=lambda w: len(self._futures[w]))
        self._futures[worker][number] = future
        try:
            self._pipes[worker].send((number, slot))
        except OSError:
            self._fail(worker)
        return future

    def close(self) -> None:
        """Kills the processes, which own nothing that has to be cleaned up."""
        for process in self._processes:
            process.kill()
        for process, receiver in zip(self._processes, self._receivers, strict=True):
            process.join(_EXIT_SECONDS)
            receiver.join(_EXIT_SECONDS)
        for pipe in self._pipes:
            pipe.close()

    def _receive(self, worker: int) -> None:
        """Passes on a worker's results, in a thread, until it ends."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, result = self._pipes[worker].recv()
                future = self._futures[worker].pop(number)
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
        self._fail(worker)

    def _fail(self, worker: int) -> None:
        """Ends the futures of a worker that died."""
        with self._failing:  # of two threads that wait, only one learns the exit code
            self._processes[worker].join(_EXIT_SECONDS)
        error = death(self._processes[worker].exitcode or 0)
        with contextlib.suppress(KeyError):  # empty
            while True:
                self._futures[worker].popitem()[1].set_exception(error)


def death(exit_code: int) -> UserError:
    """Returns the error for a worker's exit, with its likely cause and a remedy."""
    cause = "see its output above, or set data.workers=0 to find the cause"
    if exit_code == -signal.SIGKILL:
        cause = "killed, most likely out of memory: lower data.workers or data.prefetch"
    elif exit_code == -signal.SIGBUS:
        cause = "memory for batches is full: lower data.prefetch or set data.workers=0"
    elif exit_code < 0:
        name = signal.Signals(-exit_code).name
        cause = f"signal {name}: set data.workers=0 to find the cause"
    return UserError(f"a data worker process died with exit code {exit_code} ({cause})")


def _portable(error: Exception) -> Exception:
    """Returns the error, or if it cannot be pickled, one with the same message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _work(pipe: Connection, loader: Loader, threads: int) -> None:
    """Loads chunks in a worker process until the other end of the pipe is closed."""
    cv2.setNumThreads(0)
    # Ctrl-C reaches every process of the terminal; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = threading.Lock()

    def load(number: int, slot: int) -> None:
        result: Chunk | Exception
        try:
            result = loader(number, slot)
        except Exception as error:
            result = _portable(error)
            result.add_note(f"in a data worker process:\n{traceback.format_exc()}")
        with lock:
            pipe.send((number, result))

    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            pool.submit(load, *pipe.recv())
    except (EOFError, OSError):
        os._exit(0)  # without waiting for reads that hang
