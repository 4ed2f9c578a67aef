"""From a config with open fields to one that says everything."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from nfnets.augment import AugmentOptions
from nfnets.errors import UserError
from nfnets.models import REMAT, get_spec
from nfnets.models.spec import ModelSpec

# Fields for which None says something, after everything that it can stand for is resolved.
_MAY_BE_NONE = frozenset(
    {
        "init_from",
        "data.dir",
        "data.threads",
        "optimizer.clipping",
        "optimizer.clip_norm",
        "train.epochs",
        "train.warmup_epochs",
        "train.microbatch",
        "sam.rho",
        "eval.every",
        "eval.every_epochs",
        "checkpoint.every",
        "checkpoint.every_epochs",
    }
)

# Fields by the range they must lie in, checked once nothing is open any more.
_POSITIVE = (
    "model.num_classes",
    "data.batch_size",
    "data.image_size",
    "data.prefetch",
    "eval.batch_size",
    "eval.image_size",
    "train.steps",
    "train.log_every",
    "checkpoint.keep",
)
_NOT_NEGATIVE = (
    "seed",
    "data.workers",
    "data.max_bad_records",
    "optimizer.weight_decay",
    "train.learning_rate",
    "train.warmup_steps",
    "checkpoint.keep_best",
    "train.max_rollbacks",
)
_POSITIVE_OR_NONE = (
    "data.threads",
    "sam.rho",
    "eval.every",
    "checkpoint.every",
    "optimizer.clipping",
    "optimizer.clip_norm",
)
_CHOICES = {
    "model.compute_dtype": ("float32", "bfloat16", "float16"),
    "model.remat": REMAT,
    "sam.normalize": ("global", "replica"),
    "train.on_nonfinite": ("stop", "rollback"),
}
_LOG_LINES_PER_RUN = 200

# `train.microbatch` as large as the device's memory allows.
AUTO = "auto"


def model_spec(config: ml_collections.ConfigDict) -> ModelSpec:
    """Returns the variant that the config names.

    Raises:
      UserError: no such model.
    """
    try:
        return get_spec(config.model.name)
    except ValueError as error:
        raise UserError(f"config.model.name: {error}") from None


def resolve(
    config: ml_collections.ConfigDict,
    *,
    num_train: int,
    num_classes: int,
) -> ml_collections.FrozenConfigDict:
    """Fills in what follows from the model's name and from the dataset.

    Args:
      config: as loaded and overridden; not changed.
      num_train: training examples, which turn epochs into steps.
      num_classes: of the dataset.

    Returns:
      A frozen config in which a field is None only where that means "no".

    Raises:
      UserError: a value that is out of range or does not fit another.
    """
    config = config.copy_and_resolve_references()
    _resolve_model(config, num_classes)
    _resolve_durations(config, num_train)
    for section in ("eval", "checkpoint"):
        cadence = config[section]
        if cadence.every is None and cadence.every_epochs:
            cadence.every = max(1, _steps(config, num_train, cadence.every_epochs))
    for name, value in flatten(config).items():
        if value is None and name not in _MAY_BE_NONE and not name.startswith("train.ema."):
            raise UserError(f"config.{name} cannot be None")
    _check_ranges(config)
    augment_options(config)
    return ml_collections.FrozenConfigDict(config)


def resolve_evaluation(
    config: ml_collections.ConfigDict, *, num_classes: int
) -> ml_collections.FrozenConfigDict:
    """Like `resolve`, for evaluation alone: what concerns training stays open.

    Args:
      config: as loaded and overridden; not changed.
      num_classes: of the dataset.

    Raises:
      UserError: a value that is out of range.
    """
    config = config.copy_and_resolve_references()
    _resolve_model(config, num_classes)
    for name in ("eval.batch_size", "eval.image_size", "data.prefetch"):
        if not flatten(config)[name] > 0:
            raise UserError(f"config.{name} must be above 0")
    return ml_collections.FrozenConfigDict(config)


def _resolve_model(config: ml_collections.ConfigDict, num_classes: int) -> None:
    spec = model_spec(config)

    def default(section: ml_collections.ConfigDict, field: str, value: Any) -> None:
        if section[field] is None:
            section[field] = value

    default(config.model, "num_classes", num_classes)
    for field in ("drop_rate", "stochdepth_rate", "activation"):
        default(config.model, field, getattr(spec, field))
    default(config.data, "image_size", spec.recipe.train_size)
    default(config.eval, "image_size", spec.recipe.test_size)
    default(config.eval, "batch_size", config.data.batch_size)
    default(config.optimizer, "weight_decay", spec.recipe.weight_decay)
    layers = 0 if config.augment.autoaugment else spec.recipe.randaugment_layers
    default(config.augment, "randaugment_layers", layers)
    default(config.augment, "randaugment_magnitude", spec.recipe.randaugment_magnitude)
    if config.model.num_classes < num_classes:
        raise UserError(
            f"config.model.num_classes is {config.model.num_classes}, but "
            f"{config.data.source} has {num_classes} classes"
        )


def _resolve_durations(config: ml_collections.ConfigDict, num_train: int) -> None:
    train = config.train
    if train.steps is None:
        if train.epochs is None:
            raise UserError("set config.train.steps or config.train.epochs")
        train.steps = _steps(config, num_train, train.epochs)
        if train.steps < 1:
            raise UserError(
                f"config.train.epochs={train.epochs} is less than one step of "
                f"{config.data.batch_size} of the {num_train} training images"
            )
    if train.warmup_steps is None:
        warmup = _steps(config, num_train, train.warmup_epochs or 0.0)
        # A short run of a long recipe keeps a warm-up that leaves something to train.
        train.warmup_steps = min(warmup, train.steps // 10)
    if train.log_every is None:
        train.log_every = max(1, train.steps // _LOG_LINES_PER_RUN)


def _steps(config: ml_collections.ConfigDict, num_train: int, epochs: float) -> int:
    return round(epochs * num_train / config.data.batch_size)


def _check_ranges(config: ml_collections.ConfigDict) -> None:
    flat = flatten(config)
    for name in _POSITIVE:
        if not flat[name] > 0:
            raise UserError(f"config.{name} must be above 0, not {flat[name]}")
    for name in _NOT_NEGATIVE:
        if not flat[name] >= 0:
            raise UserError(f"config.{name} must be at least 0, not {flat[name]}")
    for name in _POSITIVE_OR_NONE:
        if flat[name] is not None and not flat[name] > 0:
            raise UserError(f"config.{name} must be above 0 or None, not {flat[name]}")
    if not 0 <= config.train.label_smoothing < 1:
        raise UserError("config.train.label_smoothing must be in [0, 1)")
    if config.train.warmup_steps > config.train.steps:
        raise UserError(
            f"config.train.warmup_steps={config.train.warmup_steps} is more than the "
            f"run's {config.train.steps} steps"
        )
    for name, decay in config.train.ema.items():
        if decay is not None and not 0 <= decay < 1:
            raise UserError(f"config.train.ema.{name} must be in [0, 1), not {decay}")
        if name == "raw":
            raise UserError("config.train.ema.raw: `raw` names the weights themselves")
    if not 0 < config.sam.batch_fraction <= 1:
        raise UserError(
            f"config.sam.batch_fraction must be in (0, 1], not {config.sam.batch_fraction}"
        )
    for name, choices in _CHOICES.items():
        if flat[name] not in choices:
            raise UserError(
                f"config.{name} must be one of {', '.join(choices)}, not {flat[name]!r}"
            )
    micro = config.train.microbatch
    if not (micro in (None, AUTO) or (isinstance(micro, int) and micro > 0)):
        raise UserError(
            f"config.train.microbatch must be above 0, None or {AUTO}, not {micro!r}"
        )


def augment_options(config: ml_collections.ConfigDict) -> AugmentOptions:
    """Returns `config.augment` as the options of `nfnets.augment.augment`.

    Raises:
      UserError: a value out of range.
    """
    try:
        return AugmentOptions(**config.augment.to_dict())
    except ValueError as error:
        raise UserError(f"config.{error}") from None


def check_split(config: ml_collections.FrozenConfigDict, *, num_devices: int) -> None:
    """Checks that batches divide over the devices.

    Raises:
      UserError: they do not; the message gives the nearest sizes that do.
    """
    mixes = augment_options(config).mixes
    unit = num_devices * (2 if mixes else 1)
    batch = config.data.batch_size
    if batch % unit:
        nearest = max(1, round(batch / unit)) * unit
        reason = " x 2 (mixing takes pairs)" if mixes else ""
        raise UserError(
            f"config.data.batch_size={batch} does not divide over {num_devices} "
            f"device{'s' * (num_devices > 1)}{reason}; the nearest that does is {nearest}"
        )
    per_device = config.data.batch_size // num_devices
    micro = config.train.microbatch
    fitting = fitting_microbatches(config, num_devices=num_devices)
    if micro not in (None, AUTO) and micro not in fitting:
        nearest = min(fitting, key=lambda size: abs(size - micro))
        raise UserError(
            f"config.train.microbatch={micro} does not divide the {per_device} images "
            f"per device{' into pairs' if mixes else ''}; the nearest that does is "
            f"{nearest}"
        )


def fitting_microbatches(
    config: ml_collections.FrozenConfigDict, *, num_devices: int
) -> list[int]:
    """Returns every number of images per pass that divides a device's part, ascending."""
    unit = 2 if augment_options(config).mixes else 1
    per_device = config.data.batch_size // num_devices
    return [size for size in range(unit, per_device + 1, unit) if per_device % size == 0]


def with_microbatch(
    config: ml_collections.FrozenConfigDict, microbatch: int | None
) -> ml_collections.FrozenConfigDict:
    """Returns a resolved config with another `train.microbatch`."""
    changed = ml_collections.ConfigDict(config)
    with changed.ignore_type():  # "auto" gives way to a number
        changed.train.microbatch = microbatch
    return ml_collections.FrozenConfigDict(changed)


def unflatten(flat: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Inverts `flatten`."""
    config = ml_collections.ConfigDict(allow_dotted_keys=False)
    for name, value in flat.items():
        *sections, field = name.split(".")
        place = config
        for section in sections:
            if section not in place:
                place[section] = ml_collections.ConfigDict()
            place = place[section]
        place[field] = ml_collections.ConfigDict(value) if value == {} else value
    return config


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns `section.field` -> value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | ml_collections.FrozenConfigDict):
            flat |= {f"{key}.{name}": v for name, v in flatten(value).items()}
            if not len(value):  # an empty section must not get lost
                flat[key] = {}
        else:
            flat[key] = value
    return flat
