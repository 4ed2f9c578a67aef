"""What training and evaluation share before the first step."""

from collections.abc import Callable
import os
import pathlib
from typing import TypeVar

import jax
import ml_collections
import numpy as np

from nfnets.data import CropOptions, Dataset, HostShard, open_dataset
from nfnets.errors import UserError
from nfnets.models import Model, count_multiply_adds, count_parameters
from nfnets.models.counting import parameter_shapes
from nfnets.training import distributed
from nfnets.training.state import REFERENCE_BATCH
from nfnets.training.step import batch_shapes
from nfnets.weights import WeightsInfo

_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"

_SAM_SCOPE = {"global": "over all devices", "replica": "on each device"}

T = TypeVar("T")


def enable_compilation_cache() -> None:
    """Keeps compiled programs for the next start.

    In the folder that JAX_COMPILATION_CACHE_DIR names, else in ~/.cache/nfnets/xla; not at
    all if that variable is set to nothing.
    """
    folder = os.environ.get(_CACHE_VARIABLE, "~/.cache/nfnets/xla")
    if not folder:
        return
    # Not by pathlib, which makes gs:/bucket of gs://bucket.
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def as_user_error(call: Callable[[], T]) -> T:
    """Returns `call()`; turns a ValueError about the user's values into a UserError."""
    try:
        return call()
    except ValueError as error:
        raise UserError(str(error)) from None


def open_config_dataset(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path | None,
    *,
    splits: str = "both",
) -> Dataset:
    """Opens the dataset that the config names.

    Args:
      config: resolved or not.
      workdir: where an index may be cached if the data's folder cannot be written.
      splits: "both", or "eval" for the evaluation half alone.
    """
    return open_dataset(
        config.data.source,
        data_dir=config.data.dir,
        train_split=config.data.train_split,
        eval_split=config.data.eval_split,
        num_classes=config.model.num_classes,
        index_dir=None if workdir is None else str(workdir),
        splits=splits,
    )


def adopt_model(
    config: ml_collections.ConfigDict, info: WeightsInfo, path: str
) -> ml_collections.ConfigDict:
    """Returns a copy of the config with the model that a weights file is for.

    Args:
      config: as loaded and overridden; its own model stays where the file names none.
      info: of the file.
      path: of the file, for the message.
    """
    config = config.copy_and_resolve_references()
    if info.model is not None and info.model != config.model.name:
        distributed.say(
            f"model     {info.model} instead of {config.model.name}, as {path} says"
        )
        config.model.name = info.model
    overrides = dict(info.overrides or {})
    config.model.activation = overrides.pop("activation", config.model.activation)
    with config.model.overrides.unlocked():
        config.model.overrides.update(overrides)
    return config


def host_shard() -> HostShard:
    """Returns this process's part of every global batch."""
    return HostShard(
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        local_devices=jax.local_device_count(),
    )


def crop_options(config: ml_collections.ConfigDict) -> CropOptions:
    """Returns the random crops of a resolved config."""
    data = config.data
    return as_user_error(
        lambda: CropOptions(
            image_size=data.image_size,
            min_area=data.min_area,
            max_area=data.max_area,
            min_aspect=data.min_aspect,
            max_aspect=data.max_aspect,
            flip=data.flip,
        )
    )


def describe(
    config: ml_collections.ConfigDict, model: Model, dataset: Dataset
) -> list[str]:
    """Returns the lines that a run starts with."""
    parameters = count_parameters(parameter_shapes(model))
    train_size, eval_size = config.data.image_size, config.eval.image_size
    train_cost = count_multiply_adds(model, train_size)
    eval_cost = count_multiply_adds(model, eval_size)
    devices = jax.devices()
    peak = config.train.learning_rate * config.data.batch_size / REFERENCE_BATCH
    num_train = len(dataset.train)
    epochs = config.train.steps * config.data.batch_size / num_train
    lines = [
        str(config).strip(),
        "",
        f"model     {model.name}: {parameters:,} parameters, "
        f"{_billions(train_cost)} multiply-adds at {train_size} px, "
        f"{_billions(eval_cost)} at {eval_size} px",
        f"data      {dataset.name}: {num_train:,} training and "
        f"{len(dataset.evaluation):,} evaluation images, {dataset.num_classes} classes",
        f"training  {config.train.steps:,} steps of {config.data.batch_size} images "
        f"({epochs:.4g} epochs), peak learning rate {peak:.4g}",
        f"devices   {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), "
        f"{config.model.compute_dtype}",
    ]
    micro = config.train.microbatch
    if micro is not None:
        passes = config.data.batch_size // len(devices) // micro
        lines.append(f"passes    {passes} of {micro} images per device and step")
        if model.spec.block.normalization == "batch":
            lines.append(
                f"WARNING   batch normalisation takes its statistics from {micro} images "
                "at a time: unlike a normalizer-free network, this one does not train as "
                "it would on the whole batch"
            )
    if (
        config.model.remat != "none"
        and model.spec.block.normalization == "batch"
        and devices[0].platform == "cpu"
    ):
        lines.append(
            "WARNING   XLA undoes config.model.remat on CPU devices in networks with batch "
            "normalisation, unless XLA_FLAGS holds "
            "--xla_disable_hlo_passes=cse_barrier_expander"
        )
    if config.sam.rho is not None:
        lines.append(
            f"SAM       rho {config.sam.rho:g}, ascent on {config.sam.batch_fraction:.0%} "
            f"of the batch, normalised {_SAM_SCOPE[config.sam.normalize]}"
        )
    if jax.process_count() > 1:
        lines.append(f"processes {jax.process_count()}")
    if dataset.is_fake:
        lines.append("WARNING   the data is fake (synthetic): accuracies mean nothing")
    return lines


def _billions(count: int) -> str:
    return f"{count / 1e9:.4g} B" if count >= 1e8 else f"{count / 1e6:.4g} M"


def fake_batch(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """Returns one training batch of grey images, [local devices, N, ...], for this host."""
    shapes = batch_shapes(config)
    labels = shapes["labels"]
    index = np.arange(labels.size, dtype=np.int32)
    return {
        "images": np.full(shapes["images"].shape, 128, np.uint8),
        "labels": np.zeros(labels.shape, np.int32),
        "example_index": index.reshape(labels.shape),
    }
