"""Everything that a run changes from step to step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from nfnets.models import Model, Params, State, create_model
from nfnets.optim import create_optimizer, warmup_cosine

# Name of the mapped axis of devices.
AXIS = "devices"

# Learning rates are given per this many images.
REFERENCE_BATCH = 256


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


def build_model(config: ml_collections.ConfigDict) -> Model:
    """Creates the model of a resolved config."""
    return create_model(
        config.model.name,
        config.model.num_classes,
        drop_rate=config.model.drop_rate,
        stochdepth_rate=config.model.stochdepth_rate,
        activation=config.model.activation,
        sync_batch_norm=AXIS if config.model.sync_batch_norm else None,
        compute_dtype=config.model.compute_dtype,
        remat=config.model.remat,
        **{"outline": True, **config.model.overrides},
    )


def build_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Creates the learning-rate schedule of a resolved config."""
    peak = config.train.learning_rate * config.data.batch_size / REFERENCE_BATCH
    return warmup_cosine(peak, config.train.steps, config.train.warmup_steps)


def build_optimizer(
    config: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
    """Creates the optimizer of a resolved config."""
    options = config.optimizer
    return create_optimizer(
        build_schedule(config),
        name=options.name,
        clipping=options.clipping,
        eps=options.clip_eps,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        nesterov=options.nesterov,
        b1=options.b1,
        b2=options.b2,
        epsilon=options.epsilon,
        clip_classifier=options.clip_classifier,
        clip_norm=options.clip_norm,
        per_layer=config.train.log_layers,
        head_multiplier=options.head_multiplier,
        layer_decay=options.layer_decay,
        frozen=options.frozen,
    )


def ema_decays(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns the averages that are kept: name -> decay."""
    return {name: d for name, d in sorted(config.train.ema.items()) if d is not None}


def create_state(
    config: ml_collections.ConfigDict,
    model: Model,
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
    if initial is None:
        size = config.data.image_size
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        initial = model.init(jax.random.key(config.seed), images)
    params, net_state = initial

    @jax.jit  # one program instead of one for each shape
    def start(params: Params, net_state: State) -> tuple[Any, Mapping[str, Any]]:
        # Donated buffers must not be shared between the averages and the weights.
        ema = {
            name: jax.tree.map(jnp.array, (params, net_state))
            for name in ema_decays(config)
        }
        return optimizer.init(params), ema

    opt_state, ema = start(params, net_state)
    return TrainState(jnp.zeros((), jnp.int32), params, net_state, opt_state, ema)
