"""Batches to train on and to evaluate on, the same for any number of hosts or threads.

Letters of shapes: D local devices, B images per device, S side of the images, pixels.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import NamedTuple

from absl import logging
import numpy as np

from nfnets.data import images
from nfnets.data.order import StreamOrder
from nfnets.data.pipeline import BatchIterator, Chunk, HostShard, Layout, Parallelism
from nfnets.data.records import RecordSource, UnreadableRecordError
from nfnets.data.retries import DEFAULT_RETRIES, Retries, read_record
from nfnets.errors import UserError

# Batches in the "endless" training stream: more than any run takes.
_ENDLESS = 2**40
# So many unreadable records next to each other mean that the dataset is unreadable.
_MAX_REPLACEMENTS = 100


class TrainBatch(NamedTuple):
    """One host's part of a training batch.

    Attributes:
        images: uint8 [D, B, S, S, 3], RGB.
        labels: int32 [D, B].
        example_index: int32 [D, B], positions in the global batch, from 0.
        bad_records: names of unreadable records that this iterator met for the first time
            in this batch; other records took their places.
    """

    images: np.ndarray
    labels: np.ndarray
    example_index: np.ndarray
    bad_records: tuple[str, ...]


class EvalBatch(NamedTuple):
    """One host's part of an evaluation batch.

    Attributes:
        images: uint8 [D, B, S, S, 3], RGB; zeros where padded.
        labels: int32 [D, B]; zeros where padded.
        mask: float32 [D, B], 1 for examples and 0 for padding.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


def train_batches(
    source: RecordSource,
    *,
    seed: int,
    batch_size: int,
    crop: images.CropOptions,
    start_step: int = 0,
    shard: HostShard | None = None,
    threads: int | None = None,
    workers: int = 0,
    prefetch: int = 2,
    max_bad_records: int = 100,
    bad_records_so_far: int = 0,
    retries: Retries = DEFAULT_RETRIES,
) -> BatchIterator[TrainBatch]:
    """Returns the endless training batches from `start_step` on.

    Batch s is a pure function of (source, seed, batch_size, crop, s): neither the hosts,
    threads and workers nor the step one starts from change it. Every record comes exactly
    once per epoch; batches run across the border of two epochs.

    Args:
        source: the records.
        seed: decides order and crops.
        batch_size: examples per batch over all hosts, a multiple of all devices.
        crop: size and limits of the crops.
        start_step: number of the first batch, >= 0.
        shard: which part of each batch to make; None: all of it, for one device.
        threads: see `pipeline.Parallelism`.
        workers: likewise.
        prefetch: likewise.
        max_bad_records: more distinct unreadable records than this are an error.
        bad_records_so_far: how many of them the run met before `start_step`.
        retries: how long to go on with a record while its source fails.

    Raises:
        UserError: no records, or a batch size that the devices cannot share. While
            iterating: too many unreadable records, a source that fails for too long, or a
            worker process that died.
    """
    shard = shard or HostShard()
    if not len(source):
        raise UserError("the training split has no records; change data.train_split")
    if batch_size < 1 or batch_size % shard.num_devices:
        raise UserError(
            f"data.batch_size={batch_size} is not a multiple of the {shard.num_devices} "
            "devices; change it"
        )
    read = Parallelism(threads=threads, workers=workers, prefetch=prefetch)
    layout = Layout.choose(batch_size, shard, read)
    load = _LoadTrainChunk(
        source=source,
        order=StreamOrder(seed=seed, num_records=len(source)),
        layout=layout,
        crop=crop,
        retries=retries,
    )
    first = start_step * layout.chunks_per_batch
    numbers = range(first, first + _ENDLESS * layout.chunks_per_batch)
    bad_records = _BadRecords(limit=max_bad_records, earlier=bad_records_so_far)

    def finish(batch: Chunk) -> TrainBatch:
        names = bad_records.admit(batch.bad)
        return TrainBatch(batch.images, batch.labels, batch.index, names)

    return BatchIterator(numbers, load, layout, read, finish)


def eval_batches(
    source: RecordSource,
    *,
    batch_size: int,
    image_size: int,
    preprocessing: str = "resize_crop_32",
    shard: HostShard | None = None,
    threads: int | None = None,
    workers: int = 0,
    prefetch: int = 2,
    retries: Retries = DEFAULT_RETRIES,
) -> BatchIterator[EvalBatch]:
    """Returns batches that hold every example exactly once, in order, padded at the end.

    All hosts get the same number of batches.

    Args:
        source: the records.
        batch_size: examples per batch over all hosts; rounded up to a multiple of all
            devices.
        image_size: side of the images, pixels.
        preprocessing: see `images.preprocess_eval`.
        shard: as in `train_batches`.
        threads: see `pipeline.Parallelism`.
        workers: likewise.
        prefetch: likewise.
        retries: as in `train_batches`.

    Raises:
        UserError: no records, a size below one, or an unknown preprocessing. While
            iterating: an unreadable record, a source that fails for too long, or a worker
            process that died.
    """
    shard = shard or HostShard()
    if not len(source):
        raise UserError("the evaluation split has no records; change data.eval_split")
    if batch_size < 1:
        raise UserError(f"eval.batch_size={batch_size} must be at least 1")
    if image_size < 1:
        raise UserError(f"eval.image_size={image_size} must be at least 1")
    if preprocessing not in images.EVAL_METHODS:
        raise UserError(
            f"unknown eval.preprocessing={preprocessing!r}; "
            f"choose one of {', '.join(images.EVAL_METHODS)}"
        )
    read = Parallelism(threads=threads, workers=workers, prefetch=prefetch)
    rounded = math.ceil(batch_size / shard.num_devices) * shard.num_devices
    layout = Layout.choose(rounded, shard, read)
    load = _LoadEvalChunk(
        source=source,
        layout=layout,
        image_size=image_size,
        preprocessing=preprocessing,
        retries=retries,
    )
    numbers = range(math.ceil(len(source) / rounded) * layout.chunks_per_batch)

    def finish(batch: Chunk) -> EvalBatch:
        return EvalBatch(batch.images, batch.labels, batch.real.astype(np.float32))

    return BatchIterator(numbers, load, layout, read, finish)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LoadTrainChunk:
    """Makes a training chunk from its number."""

    source: RecordSource
    order: StreamOrder
    layout: Layout
    crop: images.CropOptions
    retries: Retries

    def __call__(self, chunk_number: int, sleep: Callable[[float], None]) -> Chunk:
        step, places = self.layout.locate(chunk_number)
        chunk = _empty_chunk(places, self.crop.image_size)
        bad: list[tuple[str, str]] = []
        for row, place in enumerate(places):
            position = step * self.layout.batch_size + place
            chunk.labels[row] = self._load(position, chunk.images[row], bad, sleep)
        return chunk._replace(bad=tuple(bad))

    def _load(
        self,
        position: int,
        out: np.ndarray,
        bad: list[tuple[str, str]],
        sleep: Callable[[float], None],
    ) -> int:
        """Loads the record at `position` of the stream, or the next readable one.

        Args:
            position: in the endless stream of examples.
            out: where to write the crop, uint8 [S, S, 3].
            bad: where to append the (name, reason) of each unreadable record.
            sleep: see `read_record`.

        Returns:
            The label.
        """
        index = self.order.record_index(position)
        tries = min(len(self.source), _MAX_REPLACEMENTS)
        for offset in range(tries):
            try:
                number = (index + offset) % len(self.source)
                record = read_record(self.source, number, self.retries, sleep)
                image = images.decode_record(record)
                images.random_crop(image, self.crop, self.order.rng(position), out=out)
                return record.label
            except UnreadableRecordError as error:
                bad.append((error.name, error.reason))
        raise UserError(
            f"{tries} training records in a row are unreadable, the last is {bad[-1][0]}: "
            f"{bad[-1][1]}; check the dataset"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LoadEvalChunk:
    """Makes an evaluation chunk from its number; pads after the last example."""

    source: RecordSource
    layout: Layout
    image_size: int
    preprocessing: str
    retries: Retries

    def __call__(self, chunk_number: int, sleep: Callable[[float], None]) -> Chunk:
        step, places = self.layout.locate(chunk_number)
        chunk = _empty_chunk(places, self.image_size)
        for row, place in enumerate(places):
            index = step * self.layout.batch_size + place
            if index >= len(self.source):
                chunk.images[row:], chunk.labels[row:], chunk.real[row:] = 0, 0, False
                break
            record = read_record(self.source, index, self.retries, sleep)
            chunk.labels[row] = record.label
            image = images.decode_record(record)
            images.preprocess_eval(
                image, self.image_size, self.preprocessing, out=chunk.images[row]
            )
        return chunk


def _empty_chunk(places: range, size: int) -> Chunk:
    """A chunk at the given positions, its pixels and labels still to be filled in."""
    return Chunk(
        images=np.empty((len(places), size, size, 3), np.uint8),
        labels=np.empty(len(places), np.int32),
        index=np.asarray(places, np.int32),
        real=np.ones(len(places), bool),
        bad=(),
    )


@dataclasses.dataclass
class _BadRecords:
    """Counts distinct unreadable records, and ends the run when there are too many.

    Attributes:
        limit: so many are allowed.
        earlier: so many were met before.
        names: those met since.
    """

    limit: int
    earlier: int
    names: set[str] = dataclasses.field(default_factory=set)

    def admit(self, bad: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """Logs and counts the records not met before; returns their names."""
        new = []
        for name, reason in bad:
            if name in self.names:
                continue
            self.names.add(name)
            new.append(name)
            logging.warning("Unreadable training record replaced: %s: %s", name, reason)
            count = self.earlier + len(self.names)
            if count > self.limit:
                raise UserError(
                    f"{count} unreadable training records, more than "
                    f"data.max_bad_records={self.limit}; the last is {name}: {reason}"
                )
        return tuple(new)
