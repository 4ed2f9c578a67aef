"""Division of batches among hosts, devices, worker processes and threads.

A chunk is a few consecutive examples of one host's part of a batch: the unit of work of a
thread. Its number alone determines its examples (`Layout`).

Axes: D local devices, B images per device, S height and width of the images in pixels.
"""

import dataclasses
import os
from typing import NamedTuple, Self

import numpy as np

from nfnets.errors import UserError

# Small enough to spread a batch over all threads, large enough to amortize scheduling.
_MAX_CHUNK = 8

_THREADS_PER_CORE = 2
_MAX_THREADS = 16  # beyond this, the threads wait for the GIL


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostShard:
    """One host's part of every global batch.

    The global batch is split over all devices in order: device d of host h holds a
    contiguous range.

    Attributes:
      process_index: index of this host, in [0, process_count).
      process_count: number of hosts.
      local_devices: devices per host, >= 1.

    Raises:
      UserError: a value is out of its range.
    """

    process_index: int = 0
    process_count: int = 1
    local_devices: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.process_index < self.process_count or self.local_devices < 1:
            raise UserError(f"invalid shard {self}")

    @property
    def num_devices(self) -> int:
        """Devices of all hosts."""
        return self.process_count * self.local_devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallelism:
    """Threads, processes and prefetching of the input pipeline.

    They affect speed and memory, never the batches.

    Attributes:
      threads: reading and decoding threads per process; None: two per core, at most 16;
        0: one. More help only if reads have a high latency.
      workers: worker processes; 0: the threads belong to this process.
      prefetch: number of finished batches to keep ready.

    Raises:
      UserError: a value is negative.
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
        # On two cores, 16 threads evict each other's images from the cache: 1,760 images/s
        # instead of 2,070 with four.
        per_process = _THREADS_PER_CORE * _available_cores() // max(1, self.workers)
        return max(1, min(_MAX_THREADS, per_process))


def _available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Chunk(NamedTuple):
    """Consecutive examples of one host, without their images.

    A host's whole batch has the same type, with axes [D, B] instead of [n].

    Attributes:
      labels: int32 [n].
      positions: int32 [n], positions in the global batch.
      real: bool [n], False for padding.
      bad: unreadable records that were replaced, as (name, reason).
    """

    labels: np.ndarray
    positions: np.ndarray
    real: np.ndarray
    bad: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Maps one host's chunk numbers to positions in the global batches.

    Attributes:
      batch_size: examples per global batch, a multiple of the number of devices.
      chunk: examples per chunk, a divisor of the host's part of a batch.
      shard: the host's part.
    """

    batch_size: int
    chunk: int
    shard: HostShard

    @classmethod
    def choose(cls, batch_size: int, shard: HostShard, parallelism: Parallelism) -> Self:
        """Chooses equal chunks, if possible at least one per thread."""
        host_batch = batch_size // shard.process_count
        threads = max(1, parallelism.num_threads) * max(1, parallelism.workers)
        limit = max(1, min(_MAX_CHUNK, host_batch // threads))
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
        """Returns a chunk's step and the positions of its examples in the global batch.

        Args:
          chunk_number: counted on this host, from step 0.
        """
        step, chunk = divmod(chunk_number, self.chunks_per_batch)
        start = self.shard.process_index * self.host_batch + chunk * self.chunk
        return step, range(start, start + self.chunk)
