"""Every field of a run, once: its type, unit, default and range.

`default_config()` returns the fields as an `ml_collections.ConfigDict`, which config files
and the command line change; `resolve` checks them and returns frozen dataclasses. The
annotations are the schema (see `nfnets.schema`): `Annotated[int, "[1, inf)"]` is a range,
`Literal` lists choices, and `| None` marks fields that may be None. This module imports
neither jax nor haiku, so that mistakes are reported at once.
"""

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Any, Literal

import ml_collections

from nfnets import schema
from nfnets.augment.options import AugmentOptions
from nfnets.errors import UserError
from nfnets.models.spec import ModelSpec, Remat
from nfnets.models.variants import get_spec

# Default of a field that `resolve` derives from the model's name or from the dataset.
DERIVED: Any = None

# `train.microbatch` as large as the device's memory allows.
AUTO = "auto"

# What runs did before they had these fields, for config.json files without them.
FORMER_DEFAULTS: Mapping[str, Any] = {
    "data.apply_exif": False,
    "data.eval_fraction": 0.0,
    "data.sampling": "uniform",
}

_LOG_LINES_PER_RUN = 200
_UNKNOWN_NUM_TRAIN = 2**40


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    # `nfnets.list_models()`, or "package.module:function" for a model of one's own: called
    # with num_classes and `overrides`, it returns an object with Haiku's `init(rng, images,
    # is_training)` and `apply(params, state, rng, images, is_training)`.
    name: str = "nfnet_f0"
    num_classes: Annotated[int, "[1, inf)"] = DERIVED  # the dataset's
    drop_rate: Annotated[float, "[0, 1)"] | None = None  # dropout before the classifier
    stochdepth_rate: Annotated[float, "[0, 1)"] | None = None  # of the last block
    activation: str | None = None  # `nfnets.models.activations.names()`
    # Any field of `ModelSpec` or `BlockSpec`: alpha, widths, depths, group_width, ...
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Batch normalization (ResNets only) over the batch of all devices, not of each.
    sync_batch_norm: bool = False
    # Recompute activations in the backward pass instead of storing them: "block" stores
    # the inputs of blocks, "stage" those of stages.
    remat: Remat = "none"
    # Of activations; parameters are always float32. auto: bfloat16 on TPUs and on GPUs
    # that are fast at it, else float32.
    compute_dtype: Literal["float32", "bfloat16", "float16", "auto"] = "bfloat16"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Dataset, batches and crops."""

    source: str = "digits"  # digits | synthetic[:N] | folder:PATH | tfds:NAME[:VERSION]
    dir: str | None = None  # of TFDS; None: TFDS's own default
    train_split: str = "train"  # tfds: any split, as train[:99%]; folder: a subfolder
    eval_split: str = "validation"  # likewise; folder: `val` is found as well
    # Share of each class of a folder's training images held out for evaluation, where
    # there is no evaluation folder; chosen by `seed`.
    eval_fraction: Annotated[float, "[0, 1)"] = 0.0
    # Every image equally often, or every class.
    sampling: Literal["uniform", "balanced"] = "uniform"
    # Turn images as their EXIF orientation demands, as photo viewers do; the published
    # weights were trained and evaluated without.
    apply_exif: bool = True
    batch_size: Annotated[int, "[1, inf)"] = 4096  # per step, over all devices of all hosts
    image_size: Annotated[int, "[1, inf)"] = DERIVED  # training crops, pixels
    min_area: float = 0.08  # random crops cover at least this share of the image, in (0, 1]
    max_area: float = 1.0  # ... and at most this
    min_aspect: float = 3 / 4  # width / height of a random crop, at least
    max_aspect: float = 4 / 3  # ... and at most
    flip: bool = True  # mirror half of the training images
    # Of the channels, in [0, 255]; None: those of `init_from`, or else ImageNet's.
    mean_rgb: tuple[Annotated[float, "(-inf, inf)"], ...] | None = None
    stddev_rgb: tuple[Annotated[float, "(0, inf)"], ...] | None = None
    # Threads that read and decode, per process; None: two per core.
    threads: Annotated[int, "[1, inf)"] | None = None
    workers: Annotated[int, "[0, inf)"] = (
        0  # processes that read and decode; 0: threads only
    )
    prefetch: Annotated[int, "[1, inf)"] = 2  # batches ready beyond the one in use
    max_bad_records: Annotated[int, "[0, inf)"] = 100  # more unreadable images stop the run


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Clipping, weight decay and the update rule; see `nfnets.create_optimizer`."""

    # sgd | adam | adamw | rmsprop | lamb, another optimizer of optax (lion, ...), or
    # "package.module:function".
    name: str = "sgd"
    # Arguments of an optimizer that is not one of the first five.
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    momentum: Annotated[float, "[0, 1)"] = 0.9  # sgd and rmsprop
    nesterov: bool = True  # sgd and rmsprop
    b1: Annotated[float, "[0, 1)"] = 0.9  # adam, adamw, lamb
    b2: Annotated[float, "[0, 1)"] = 0.999  # the same, and rmsprop's mean square
    epsilon: Annotated[float, "[0, inf)"] = 1e-8  # added to the denominator by all of them
    weight_decay: Annotated[float, "[0, inf)"] = DERIVED  # not on gains and biases
    clipping: Annotated[float, "(0, inf)"] | None = 0.01  # AGC's lambda; None: no AGC
    clip_eps: Annotated[float, "(0, inf)"] = 1e-3  # AGC's lower bound of the weight norm
    clip_classifier: bool = False  # AGC on the classifier's weight too
    clip_norm: Annotated[float, "(0, inf)"] | None = None  # global norm, before AGC
    head_multiplier: Annotated[float, "[0, inf)"] = 1.0  # of the classifier's learning rate
    layer_decay: Annotated[float, "(0, 1]"] = 1.0  # of the rate, per block below it
    # Regular expressions; parameters whose path (`module:name`) one matches are frozen.
    frozen: tuple[str, ...] = ()
    # "package.module:function" from a model's parameters to a tree of classifier_weight |
    # weight | gain_or_bias, for a model of one's own; None: by the paths of our models.
    label_fn: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, learning rate, loss and logging of the run."""

    steps: Annotated[int, "[1, inf)"] = DERIVED  # length of the run: steps ...
    epochs: Annotated[float, "(0, inf)"] | None = 360.0  # ... or epochs, if steps is None
    # Peak, per 256 images: multiplied by batch_size / 256.
    learning_rate: Annotated[float, "[0, inf)"] = 0.1
    # cosine | linear | constant | rsqrt | step, or "package.module:function" called with
    # (peak, total_steps, warmup_steps, **schedule_kwargs).
    schedule: str = "cosine"
    schedule_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warmup_steps: Annotated[int, "[0, inf)"] = DERIVED  # linear from 0: steps ...
    warmup_epochs: Annotated[float, "[0, inf)"] | None = 5.0  # ... or epochs, if None
    # A function of nfnets/training/loss.py, or "package.module:function" like those.
    loss: str = "softmax_cross_entropy"
    label_smoothing: Annotated[float, "[0, 1)"] = 0.1
    # Images per device and pass; None: all at once; auto: as many as fit in memory.
    microbatch: Annotated[int, "[1, inf)"] | Literal["auto"] | None = None
    # Exponential moving averages of the parameters: name -> decay, or None to drop one.
    # The decay is warmed up: min(decay, (1 + step) / (10 + step)).
    ema: Mapping[str, Annotated[float, "[0, 1)"] | None] = dataclasses.field(
        default_factory=lambda: {"ema": 0.99999}
    )
    log_every: Annotated[int, "[1, inf)"] = DERIVED  # steps; about 200 times in the run
    log_layers: bool = False  # AGC's statistics array by array
    # Of json, tensorboard, console, wandb, or "package.module:Class" like those of
    # nfnets/training/metric_writers.py.
    writers: tuple[str, ...] = ("json", "tensorboard", "console")
    profile: tuple[int, ...] | None = (
        None  # (start, stop): steps to trace with JAX's profiler
    )
    # On a NaN or infinite loss or gradient: stop, or rollback to the last checkpoint and
    # skip the batches after it.
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    max_rollbacks: Annotated[int, "[0, inf)"] = 3  # in the whole run

    @property
    def ema_decays(self) -> dict[str, float]:
        """The averages that are kept: name -> decay, sorted by name."""
        return {name: d for name, d in sorted(self.ema.items()) if d is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamConfig:
    """Sharpness-aware minimization (F6's recipe: rho 0.05)."""

    rho: Annotated[float, "(0, inf)"] | None = None  # length of the ascent; None: no SAM
    batch_fraction: Annotated[float, "(0, 1]"] = 0.2  # of the batch, used for the ascent
    # global: one ascent from all devices' gradients; replica: one for each device.
    normalize: Literal["global", "replica"] = "global"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation during and after training."""

    every: Annotated[int, "[1, inf)"] | None = None  # steps between evaluations ...
    every_epochs: Annotated[float, "[0, inf)"] | None = 1.0  # ... or epochs, if None
    batch_size: Annotated[int, "[1, inf)"] = DERIVED  # over all devices; as in training
    image_size: Annotated[int, "[1, inf)"] = DERIVED  # pixels; the model's test size
    # resize_crop_32 (the default), crop_resize, resize, squash or center.
    preprocessing: str = DERIVED
    crop_fraction: Annotated[float, "(0, 1]"] | None = None  # of squash and center
    # Names of nfnets/training/evaluation.py, or "package.module:function" like those.
    metrics: tuple[str, ...] = ("top1", "top5", "loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints of the run."""

    every: Annotated[int, "[1, inf)"] | None = None  # steps between checkpoints ...
    every_epochs: Annotated[float, "[0, inf)"] | None = 1.0  # ... or epochs, if None
    keep: Annotated[int, "[1, inf)"] = 3  # newest ones
    keep_best: Annotated[int, "[0, inf)"] = 1  # by eval/top1, in addition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """All fields of a run."""

    # Decides initial weights, data order, crops, augmentation and dropout.
    seed: Annotated[int, "[0, inf)"] = 0
    # Weights to start from, a file or another reference; None: random weights.
    init_from: str | None = None
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentOptions = AugmentOptions()  # noqa: RUF009 (frozen)
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    sam: SamConfig = SamConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Config":
        """Returns a config with the values of a nested mapping, section -> field -> value.

        Raises:
          UserError: a field is unknown, or its value is of the wrong type or out of range.
        """
        return schema.build(cls, tree, "config")


def default_config() -> ml_collections.ConfigDict:
    """Returns all fields with their defaults; locked but for averages and overrides."""
    config = ml_collections.ConfigDict(dataclasses.asdict(Config()))
    config.augment.randaugment_layers = DERIVED
    config.augment.randaugment_magnitude = DERIVED
    config.lock()
    for section in (
        config.model.overrides,
        config.optimizer.kwargs,
        config.train.ema,
        config.train.schedule_kwargs,
    ):
        section.unlock()
    return config


def resolve(
    config: ml_collections.ConfigDict, *, num_classes: int, num_train: int | None = None
) -> Config:
    """Derives what follows from the model's name and the dataset, and checks every field.

    Args:
      config: as loaded and overridden; not changed.
      num_classes: of the dataset.
      num_train: training examples, which turn epochs into steps; None for evaluation
        alone.

    Raises:
      UserError: a value is out of range or does not fit another.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        _derive_from_model(config, num_classes)
        _derive_durations(config, num_train or _UNKNOWN_NUM_TRAIN)
    resolved = Config.from_dict(config.to_dict())
    train = resolved.train
    if train.warmup_steps > train.steps:
        raise UserError(
            f"config.train.warmup_steps={train.warmup_steps} is more than the run's "
            f"{train.steps} steps"
        )
    if "raw" in train.ema:
        raise UserError("config.train.ema.raw: `raw` stands for the weights themselves")
    for name in ("mean_rgb", "stddev_rgb"):
        value = getattr(resolved.data, name)
        if value is not None and len(value) != 3:
            raise UserError(f"config.data.{name} must have 3 entries, not {len(value)}")
    if train.profile is not None and not (
        len(train.profile) == 2 and 0 <= train.profile[0] < train.profile[1]
    ):
        raise UserError(f"config.train.profile must be (start, stop), not {train.profile}")
    return resolved


def model_spec(name: str) -> ModelSpec | None:
    """Returns the spec of a named model, None for "package.module:function".

    Raises:
      UserError: the model is unknown.
    """
    return None if ":" in name else get_spec(name)


def _derive_from_model(config: ml_collections.ConfigDict, num_classes: int) -> None:
    def default(section: ml_collections.ConfigDict, field: str, value: Any) -> None:
        if section[field] is None:
            section[field] = value

    default(config.model, "num_classes", num_classes)
    default(config.eval, "batch_size", config.data.batch_size)
    default(config.eval, "preprocessing", "resize_crop_32")
    spec = model_spec(config.model.name)
    if spec is None:
        default(config.augment, "randaugment_layers", 0)
        default(config.augment, "randaugment_magnitude", 0)
        default(config.optimizer, "weight_decay", 0.0)
        default(config.eval, "image_size", config.data.image_size)
        if config.data.image_size is None:
            raise UserError(
                "config.data.image_size must be set for a model of one's own "
                f"({config.model.name})"
            )
    else:
        for field in ("drop_rate", "stochdepth_rate", "activation"):
            default(config.model, field, getattr(spec, field))
        recipe = spec.recipe
        default(config.data, "image_size", recipe.train_size)
        default(config.eval, "image_size", recipe.test_size)
        default(config.optimizer, "weight_decay", recipe.weight_decay)
        layers = 0 if config.augment.autoaugment else recipe.randaugment_layers
        default(config.augment, "randaugment_layers", layers)
        default(config.augment, "randaugment_magnitude", recipe.randaugment_magnitude)
    if isinstance(config.model.num_classes, int) and config.model.num_classes < num_classes:
        raise UserError(
            f"config.model.num_classes is {config.model.num_classes}, but "
            f"{config.data.source} has {num_classes} classes"
        )


def _derive_durations(config: ml_collections.ConfigDict, num_train: int) -> None:
    # Checked first, because durations are computed from them.
    batch_size = schema.check(
        Annotated[int, "[1, inf)"], config.data.batch_size, "config.data.batch_size"
    )
    train = config.train

    def to_steps(epochs: float | None) -> int:
        return round((epochs or 0.0) * num_train / batch_size)

    if train.steps is None:
        if train.epochs is None:
            raise UserError("set config.train.steps or config.train.epochs")
        train.steps = to_steps(train.epochs)
        if train.steps < 1:
            raise UserError(
                f"config.train.epochs={train.epochs} is less than one step of {batch_size} "
                f"of the {num_train} training images"
            )
    if train.warmup_steps is None:
        # A short run of a long recipe keeps a warm-up that leaves steps to train.
        train.warmup_steps = min(to_steps(train.warmup_epochs), train.steps // 10)
    if train.log_every is None:
        train.log_every = max(1, train.steps // _LOG_LINES_PER_RUN)
    for section in (config.eval, config.checkpoint):
        if section.every is None and section.every_epochs:
            section.every = max(1, to_steps(section.every_epochs))


def flatten(config: Config) -> dict[str, Any]:
    """Returns `section.field` -> value."""
    return schema.flatten(dataclasses.asdict(config))


def unflatten(flat: Mapping[str, Any]) -> Config:
    """Inverts `flatten`; fields that this version does not have are left out.

    Fields that are newer than the run have the values of `FORMER_DEFAULTS`.

    Raises:
      UserError: a value is of the wrong type or out of range.
    """
    tree = schema.unflatten({**FORMER_DEFAULTS, **flat})
    return Config.from_dict(schema.drop_unknown(Config, tree))
