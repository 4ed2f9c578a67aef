"""Training and evaluation batches that do not depend on the number of hosts or threads.

Axes: D local devices, B images per device, S height and width of the images in pixels.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Literal, NamedTuple

from absl import logging
import numpy as np

from nfnets.data import images
from nfnets.data.layout import Chunk, HostShard, Layout, Parallelism
from nfnets.data.order import BalancedOrder, StreamOrder
from nfnets.data.pipeline import BatchIterator
from nfnets.data.sources.base import RecordSource, UnreadableRecordError
from nfnets.data.sources.retries import DEFAULT_RETRIES, Retries, RetryingSource
from nfnets.errors import UserError

# Length of the endless training stream, more than any run needs.
_MAX_BATCHES = 2**40
# This many unreadable records in a row mean that the whole dataset is unreadable.
_MAX_REPLACEMENTS = 100


class TrainBatch(NamedTuple):
    """One host's part of a training batch.

    Attributes:
      images: uint8 [D, B, S, S, 3], RGB.
      labels: int32 [D, B].
      example_index: int32 [D, B], positions in the global batch, from 0.
      bad_records: names of unreadable records that this batch was the first to meet. Other
        records replace them.
    """

    images: np.ndarray
    labels: np.ndarray
    example_index: np.ndarray
    bad_records: tuple[str, ...]


class EvalBatch(NamedTuple):
    """One host's part of an evaluation batch.

    Attributes:
      images: uint8 [D, B, S, S, 3], RGB; zeros in padding.
      labels: int32 [D, B]; zeros in padding.
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
    sampling: Literal["uniform", "balanced"] = "uniform",
    apply_exif: bool = True,
) -> BatchIterator[TrainBatch]:
    """Returns the endless training batches from `start_step` on.

    Batch s is a pure function of (source, seed, batch_size, crop, sampling, s); it does not
    depend on the hosts, threads and workers or on `start_step`. With uniform sampling,
    every epoch contains each record once; a batch may contain the end of one epoch and the
    start of the next.

    Args:
      source: the records.
      seed: determines the order and the crops.
      batch_size: examples per batch over all hosts, a multiple of the number of devices.
      crop: size and limits of the crops.
      start_step: number of the first batch, >= 0.
      shard: this host's part of each batch; None: the whole batch, for one device.
      threads: see `Parallelism`.
      workers: see `Parallelism`.
      prefetch: see `Parallelism`.
      max_bad_records: maximum number of distinct unreadable records.
      bad_records_so_far: number of those that the run met before `start_step`.
      retries: how long to retry a read that fails.
      sampling: `uniform`: every record equally often; `balanced`: every class equally
        often, for which the source needs an attribute `labels`, integers [records].
      apply_exif: see `images.decode`.

    Raises:
      UserError: the source is empty, the batch size is invalid, or the source has no
        labels for balanced sampling. While iterating: too many unreadable
        records, a source that fails for too long, or a worker process that died.
    """
    shard = shard or HostShard()
    if not len(source):
        raise UserError("the training split has no records; change data.train_split")
    if batch_size < 1 or batch_size % shard.num_devices:
        raise UserError(
            f"data.batch_size={batch_size} is not a multiple of the {shard.num_devices} "
            "devices; change it"
        )
    parallelism = Parallelism(threads=threads, workers=workers, prefetch=prefetch)
    layout = Layout.choose(batch_size, shard, parallelism)
    records = RetryingSource(source, retries)
    load = _LoadTrainChunk(
        records=records,
        order=_create_order(source, seed, sampling),
        layout=layout,
        crop=crop,
        apply_exif=apply_exif,
    )
    numbers = range(start_step, start_step + _MAX_BATCHES)
    bad_records = _BadRecords(limit=max_bad_records, earlier=bad_records_so_far)

    def finish(images: np.ndarray, batch: Chunk) -> TrainBatch:
        names = bad_records.add(batch.bad)
        return TrainBatch(images, batch.labels, batch.positions, names)

    size = crop.image_size
    return BatchIterator(numbers, load, layout, size, parallelism, finish, records.cancel)


def eval_batches(
    source: RecordSource,
    *,
    batch_size: int,
    image_size: int,
    preprocessing: str = "resize_crop_32",
    crop_fraction: float | None = None,
    shard: HostShard | None = None,
    threads: int | None = None,
    workers: int = 0,
    prefetch: int = 2,
    retries: Retries = DEFAULT_RETRIES,
    apply_exif: bool = True,
) -> BatchIterator[EvalBatch]:
    """Returns batches that contain every example once, in order, with padding at the end.

    All hosts get the same number of batches.

    Args:
      source: the records.
      batch_size: examples per batch over all hosts; rounded up to a multiple of the number
        of devices.
      image_size: height and width of the images, pixels.
      preprocessing: see `images.preprocess_eval`.
      crop_fraction: see `images.preprocess_eval`.
      shard: as in `train_batches`.
      threads: see `Parallelism`.
      workers: see `Parallelism`.
      prefetch: see `Parallelism`.
      retries: how long to retry a read that fails.
      apply_exif: see `images.decode`.

    Raises:
      UserError: the source is empty, a size is below one, or the preprocessing is unknown.
        While iterating: an unreadable record, a source that fails for too long, or a worker
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
    parallelism = Parallelism(threads=threads, workers=workers, prefetch=prefetch)
    batch_size = math.ceil(batch_size / shard.num_devices) * shard.num_devices
    layout = Layout.choose(batch_size, shard, parallelism)
    records = RetryingSource(source, retries)
    load = _LoadEvalChunk(
        records=records,
        layout=layout,
        image_size=image_size,
        preprocessing=preprocessing,
        apply_exif=apply_exif,
        crop_fraction=crop_fraction,
    )
    numbers = range(math.ceil(len(source) / batch_size))

    def finish(images: np.ndarray, batch: Chunk) -> EvalBatch:
        return EvalBatch(images, batch.labels, batch.real.astype(np.float32))

    size = image_size
    return BatchIterator(numbers, load, layout, size, parallelism, finish, records.cancel)


def check_sampling(source: RecordSource, sampling: str) -> None:
    """Raises a UserError if a source cannot be sampled in this way; see `train_batches`."""
    if sampling not in ("uniform", "balanced"):
        raise UserError(f"data.sampling={sampling!r} must be uniform or balanced")
    if sampling == "balanced" and not hasattr(source, "labels"):
        raise UserError(
            "data.sampling=balanced needs the labels before the images are read, which "
            f"image folders and digits have, but not {type(source).__name__}; set it to "
            "uniform"
        )


def _create_order(source: RecordSource, seed: int, sampling: str) -> StreamOrder:
    """Creates the order of the training stream."""
    check_sampling(source, sampling)
    if sampling == "uniform":
        return StreamOrder(seed=seed, num_records=len(source))
    labels = np.asarray(getattr(source, "labels"))  # noqa: B009 (not of all sources)
    return BalancedOrder(seed=seed, num_records=len(source), labels=labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LoadTrainChunk:
    """Loads a training chunk given its number; writes its images to `out`."""

    records: RetryingSource
    order: StreamOrder
    layout: Layout
    crop: images.CropOptions
    apply_exif: bool

    def __call__(self, chunk_number: int, out: np.ndarray) -> Chunk:
        step, places = self.layout.locate(chunk_number)
        start = step * self.layout.batch_size + places.start
        draws = self.order.uniforms(start, len(places), images.DRAWS_PER_CROP).tolist()
        labels: list[int] = []
        bad: list[tuple[str, str]] = []
        for row in range(len(places)):
            index = self.order.record_index(start + row)
            labels.append(self._load(index, draws[row], out[row], bad))
        return _chunk(labels, places, bad)

    def _load(
        self, index: int, draws: list[float], out: np.ndarray, bad: list[tuple[str, str]]
    ) -> int:
        """Loads the record at `index`, or the next readable one.

        Args:
          index: of the record.
          draws: random numbers of the crop.
          out: the crop is written here, uint8 [S, S, 3].
          bad: the (name, reason) of each unreadable record is appended.

        Returns:
          The label.
        """
        attempts = min(len(self.records), _MAX_REPLACEMENTS)
        for offset in range(attempts):
            try:
                record = self.records[(index + offset) % len(self.records)]
                image = images.decode_record(record, apply_exif=self.apply_exif)
                images.random_crop(image, self.crop, draws, out=out)
                return record.label
            except UnreadableRecordError as error:
                bad.append((error.name, error.reason))
        raise UserError(
            f"{attempts} training records in a row are unreadable; check the dataset; the "
            f"last is {bad[-1][0]}: {bad[-1][1]}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LoadEvalChunk:
    """Loads an evaluation chunk given its number; pads after the last example."""

    records: RetryingSource
    layout: Layout
    image_size: int
    preprocessing: str
    apply_exif: bool
    crop_fraction: float | None

    def __call__(self, chunk_number: int, out: np.ndarray) -> Chunk:
        step, places = self.layout.locate(chunk_number)
        start = step * self.layout.batch_size + places.start
        labels: list[int] = []
        for index in range(start, min(start + len(places), len(self.records))):
            record = self.records[index]
            image = images.decode_record(record, apply_exif=self.apply_exif)
            images.preprocess_eval(
                image,
                self.image_size,
                self.preprocessing,
                self.crop_fraction,
                out=out[len(labels)],
            )
            labels.append(record.label)
        out[len(labels) :] = 0
        return _chunk(labels, places, [])


def _chunk(labels: list[int], places: range, bad: list[tuple[str, str]]) -> Chunk:
    """Returns the chunk at the given positions, with padding after the labels."""
    padding = len(places) - len(labels)
    return Chunk(
        labels=np.array(labels + [0] * padding, np.int32),
        positions=np.asarray(places, np.int32),
        real=np.array([True] * len(labels) + [False] * padding),
        bad=tuple(bad),
    )


@dataclasses.dataclass
class _BadRecords:
    """Counts distinct unreadable records.

    Attributes:
      limit: maximum number.
      earlier: number of those that the run met before.
      names: of those met since.
    """

    limit: int
    earlier: int
    names: set[str] = dataclasses.field(default_factory=set)

    def add(self, bad: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """Logs and counts new records, given as (name, reason); returns their names.

        Raises:
          UserError: there are too many.
        """
        new = []
        for name, reason in bad:
            if name in self.names:
                continue
            self.names.add(name)
            new.append(name)
            logging.warning("Replaced an unreadable training record: %s: %s", name, reason)
            count = self.earlier + len(self.names)
            if count > self.limit:
                raise UserError(
                    f"{count} unreadable training records, more than "
                    f"data.max_bad_records={self.limit}; the last is {name}: {reason}"
                )
        return tuple(new)
