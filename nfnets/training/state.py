"""The state that a run updates from step to step, and the parts that it is built from."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import optax

from nfnets import imports, schema
from nfnets.models import Params, State, create_model
from nfnets.optim import create_optimizer, create_schedule
from nfnets.platform import target_platform
from nfnets.training.config import Config
from nfnets.training.distributed import log
from nfnets.weights import WeightsInfo

# Name of the mapped axis of devices.
AXIS = "devices"

# Learning rates are given per this number of images.
REFERENCE_BATCH = 256

# images uint8 [N, H, W, 3], labels int32 [N], example_index int32 [N]; in SAM's ascent also
# weight float32 [N].
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# Random keys of the augmentation and of the model.
Keys = tuple[jax.Array, jax.Array]
# `RAW` for the weights themselves, or an average's name -> (params, net_state).
Weights = Mapping[str, tuple[Params, State]]
RAW = "raw"


class TrainState(NamedTuple):
    """What a checkpoint holds, replicated over devices.

    Attributes:
      step: int32 scalar, updates made so far.
      params: module -> name -> float32 array.
      net_state: batch-norm statistics; empty for normalizer-free networks.
      opt_state: of the optax chain.
      ema: average's name -> (params, net_state) averaged.
    """

    step: jax.Array
    params: Params
    net_state: State
    opt_state: Any
    ema: Mapping[str, tuple[Params, State]]


class Network(Protocol):
    """What training needs of a model: that of `nfnets.create_model`, or one's own."""

    def init(
        self, rng: jax.Array, images: jax.Array, is_training: bool
    ) -> tuple[Params, State]:
        """Returns initial (params, state) for images [N, H, W, 3]."""

    def apply(
        self,
        params: Params,
        state: State,
        rng: jax.Array | None,
        images: jax.Array,
        is_training: bool,
        example_index: jax.Array | None = None,
    ) -> tuple[Mapping[str, jax.Array], State]:
        """Returns (outputs, state) with `logits` [N, classes] among the outputs."""


@dataclasses.dataclass(frozen=True)
class CustomNetwork:
    """Adapts a model of one's own, such as `hk.transform_with_state` returns.

    Such models know no example indices. Their random numbers differ between the parts of
    a batch, and so depend on how the batch is divided.

    Attributes:
      name: `package.module:function` that created it.
      model: the object with `init` and `apply`.
    """

    name: str
    model: Any

    def init(
        self, rng: jax.Array, images: jax.Array, is_training: bool
    ) -> tuple[Params, State]:
        """See `Network`."""
        return self.model.init(rng, images, is_training)

    def apply(
        self,
        params: Params,
        state: State,
        rng: jax.Array | None,
        images: jax.Array,
        is_training: bool,
        example_index: jax.Array | None = None,
    ) -> tuple[Mapping[str, jax.Array], State]:
        """See `Network`; outputs that are a bare array are taken for the logits."""
        if rng is not None and example_index is not None:
            rng = jax.random.fold_in(rng, example_index[0])
        outputs, state = self.model.apply(params, state, rng, images, is_training)
        if not isinstance(outputs, Mapping):
            outputs = {"logits": outputs}
        return outputs, state


def build_model(config: Config) -> Network:
    """Creates the model of a resolved config.

    Raises:
      UserError: an override or a value does not fit the model.
    """
    options = config.model
    if ":" in options.name:
        factory = imports.find(options.name, None, "config.model.name")
        model = factory(num_classes=options.num_classes, **options.overrides)
        return CustomNetwork(options.name, model)
    return create_model(
        options.name,
        options.num_classes,
        sync_batch_norm=AXIS if options.sync_batch_norm else None,
        compute_dtype=compute_dtype(config),
        drop_rate=options.drop_rate,
        stochdepth_rate=options.stochdepth_rate,
        activation=options.activation,
        remat=options.remat,
        **options.overrides,
    )


def compute_dtype(config: Config) -> str:
    """Returns `model.compute_dtype`, with "auto" resolved for this process's devices."""
    if config.model.compute_dtype != "auto":
        return config.model.compute_dtype
    platform = target_platform()
    # GPUs have tensor cores for bfloat16 since compute capability 8.0.
    capability = float(getattr(jax.devices()[0], "compute_capability", "8.0"))
    is_fast = platform == "tpu" or (platform in ("gpu", "cuda") and capability >= 8.0)
    return "bfloat16" if is_fast else "float32"


def adopt_model(
    config: ml_collections.ConfigDict, info: WeightsInfo, path: str
) -> ml_collections.ConfigDict:
    """Returns a copy of a config with the model and normalization of a weights file.

    Args:
      config: as loaded and overridden; keeps its own model where the file names none.
      info: of the file.
      path: of the file, for the message.
    """
    config = config.copy_and_resolve_references()
    if info.model is not None and info.model != config.model.name:
        log(f"model     {info.model} instead of {config.model.name}, from {path}")
        config.model.name = info.model
    overrides = dict(info.overrides or {})
    config.model.activation = overrides.pop("activation", config.model.activation)
    config.model.overrides.update(overrides)
    with config.ignore_type():
        for name in ("mean_rgb", "stddev_rgb"):
            if config.data[name] is None:
                config.data[name] = getattr(info, name)
    return config


def initial_shapes(config: Config, model: Network) -> tuple[Params, State]:
    """Returns (params, net_state) with `jax.ShapeDtypeStruct` leaves."""
    return jax.eval_shape(lambda: draw_weights(config, model))


def draw_weights(config: Config, model: Network) -> tuple[Params, State]:
    """Returns the (params, net_state) that follow from `config.seed`."""
    size = config.data.image_size
    images = jnp.zeros((1, size, size, 3), jnp.float32)
    return model.init(jax.random.key(config.seed), images, True)


def build_schedule(config: Config) -> optax.Schedule:
    """Creates the learning-rate schedule of a resolved config."""
    train = config.train
    peak = train.learning_rate * config.data.batch_size / REFERENCE_BATCH
    return create_schedule(
        train.schedule, peak, train.steps, train.warmup_steps, **train.schedule_kwargs
    )


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """Creates the optimizer of a resolved config.

    Raises:
      UserError: the optimizer or one of its arguments is unknown.
    """
    arguments = schema.as_arguments(config.optimizer)
    arguments["eps"] = arguments.pop("clip_eps")
    if config.optimizer.label_fn is not None:
        name = config.optimizer.label_fn
        arguments["label_fn"] = imports.find(name, None, "config.optimizer.label_fn")
    return create_optimizer(
        build_schedule(config), per_layer=config.train.log_layers, **arguments
    )


def create_state(
    config: Config,
    model: Network,
    optimizer: optax.GradientTransformation,
    initial: tuple[Params, State] | None = None,
) -> TrainState:
    """Creates the state before the first step.

    Args:
      config: resolved.
      model: from `build_model`.
      optimizer: from `build_optimizer`.
      initial: (params, net_state) to start from; None: drawn with `config.seed`.
    """
    params, net_state = draw_weights(config, model) if initial is None else initial

    @jax.jit  # one program instead of one for each shape
    def start(params: Params, net_state: State) -> tuple[Any, Mapping[str, Any]]:
        # Donated buffers must not be shared between the averages and the weights.
        ema = {
            name: jax.tree.map(jnp.array, (params, net_state))
            for name in config.train.ema_decays
        }
        return optimizer.init(params), ema

    opt_state, ema = start(params, net_state)
    return TrainState(jnp.zeros((), jnp.int32), params, net_state, opt_state, ema)


def flatten_state(state: TrainState) -> dict[str, Any]:
    """Returns path -> array, for instance `params|NFNet/~/linear|w` or `ema|ema|0|...`."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="|"): leaf
        for path, leaf in leaves
    }


def select_weights(arrays: Mapping[str, Any]) -> Weights:
    """Returns the weights and their averages among the arrays of `flatten_state`."""
    trees: dict[str, Any] = {"params": {}, "net_state": {}, "ema": {}}
    for path, array in arrays.items():
        kind, *keys = path.split("|")
        if kind in trees:
            place = trees[kind]
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = array
    averages = {
        name: (parts.get("0", {}), parts.get("1", {}))
        for name, parts in sorted(trees["ema"].items())
    }
    return {RAW: (trees["params"], trees["net_state"]), **averages}
