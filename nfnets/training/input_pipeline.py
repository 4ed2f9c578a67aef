"""From a config to the dataset, its batches, and batches on the devices."""

from collections.abc import Iterator
from typing import Literal

import jax
import ml_collections
import numpy as np

from nfnets import data, schema
from nfnets.data import (
    BatchIterator,
    CropOptions,
    Dataset,
    EvalBatch,
    HostShard,
    TrainBatch,
)
from nfnets.errors import UserError
from nfnets.training.config import Config
from nfnets.training.distributed import log
from nfnets.training.step import batch_shapes, put_batch

# Stands in for a dataset that is missing in a dry run: ImageNet's size.
_IMAGENET_TRAIN, _IMAGENET_CLASSES = 1_281_167, 1_000


def open_config_dataset(
    config: ml_collections.ConfigDict | Config,
    *,
    splits: Literal["both", "eval"] = "both",
    or_fake: bool = False,
) -> Dataset:
    """Opens the dataset of a config.

    Args:
      config: resolved or not.
      splits: "both", or "eval" for the evaluation split alone.
      or_fake: replace a dataset that cannot be opened by synthetic images of ImageNet's
        number, with a warning.

    Raises:
      UserError: the dataset is unknown, missing or unusable.
    """
    try:
        return data.open_dataset(
            config.data.source,
            data_dir=config.data.dir,
            train_split=config.data.train_split,
            eval_split=config.data.eval_split,
            num_classes=config.model.num_classes,
            splits=splits,
            eval_fraction=config.data.eval_fraction,
            seed=config.seed,
            log=lambda line: log(f"data      {line}"),
        )
    except UserError as error:
        if not or_fake:
            raise
        log(f"WARNING   {error}")
        log(f"WARNING   {_IMAGENET_TRAIN:,} synthetic images take its place")
        classes = config.model.num_classes or _IMAGENET_CLASSES
        return data.open_dataset(f"synthetic:{_IMAGENET_TRAIN}", num_classes=classes)


def host_shard() -> HostShard:
    """Returns this process's part of every global batch."""
    return HostShard(
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        local_devices=jax.local_device_count(),
    )


def train_batches(
    config: Config,
    dataset: Dataset,
    *,
    first_batch: int = 0,
    bad_records: int = 0,
    shard: HostShard | None = None,
) -> BatchIterator[TrainBatch]:
    """Returns this process's part of the endless training batches.

    Args:
      config: resolved.
      dataset: its training split is used.
      first_batch: number of the batch to start with.
      bad_records: unreadable records before that batch.
      shard: the part of each batch; None: this process's.
    """
    return data.train_batches(
        dataset.train,
        seed=config.seed,
        batch_size=config.data.batch_size,
        crop=schema.select(config.data, CropOptions),
        start_step=first_batch,
        shard=host_shard() if shard is None else shard,
        threads=config.data.threads,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        max_bad_records=config.data.max_bad_records,
        bad_records_so_far=bad_records,
        sampling=config.data.sampling,
        apply_exif=config.data.apply_exif,
    )


def eval_batches(config: Config, dataset: Dataset) -> BatchIterator[EvalBatch]:
    """Returns this process's part of the evaluation batches, padded and masked.

    Args:
      config: resolved.
      dataset: its evaluation split is used.
    """
    return data.eval_batches(
        dataset.evaluation,
        batch_size=config.eval.batch_size,
        image_size=config.eval.image_size,
        preprocessing=config.eval.preprocessing,
        apply_exif=config.data.apply_exif,
        crop_fraction=config.eval.crop_fraction,
        shard=host_shard(),
        threads=config.data.threads,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
    )


def load_batch(
    batches: Iterator[TrainBatch],
) -> tuple[dict[str, jax.Array], tuple[str, ...]]:
    """Starts to copy the next batch to the devices.

    Returns:
      (arrays of [local devices, N, ...], names of the bad records met in the batch).
    """
    batch = next(batches)
    names = ("images", "labels", "example_index")
    return put_batch({name: getattr(batch, name) for name in names}), batch.bad_records


def fake_batch(config: Config) -> dict[str, np.ndarray]:
    """Returns gray training images, [local devices, N, ...], for this process."""
    shapes = batch_shapes(config)
    labels = shapes["labels"]
    index = np.arange(labels.size, dtype=np.int32)
    return {
        "images": np.full(shapes["images"].shape, 128, np.uint8),
        "labels": np.zeros(labels.shape, np.int32),
        "example_index": index.reshape(labels.shape),
    }
