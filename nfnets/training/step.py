"""One training step as a pure function, its mapping over devices, and its inputs.

Axis letters: D local devices, N examples per device, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nfnets.models import State
from nfnets.models.names import parameter_path
from nfnets.optim import clipping_state, update_ema
from nfnets.training.config import Config
from nfnets.training.gradients import make_gradient
from nfnets.training.state import (
    AXIS,
    Batch,
    Keys,
    Metrics,
    Network,
    TrainState,
    build_schedule,
)

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def step_keys(seed: int, step: jax.typing.ArrayLike) -> Keys:
    """Returns the random keys of a step: of the augmentation, and of the model.

    Args:
      seed: `config.seed`.
      step: updates made before this one.
    """
    augment_key, model_key = jax.random.split(
        jax.random.fold_in(jax.random.key(seed), step)
    )
    return augment_key, model_key


def make_train_step(
    config: Config, model: Network, optimizer: optax.GradientTransformation
) -> TrainStep:
    """Builds the step of one device, a pure function of (state, batch).

    All randomness is a function of (seed, step, an example's index in the global batch),
    so the result does not depend on how the batch is divided. The function is to be mapped
    with the axis name `AXIS`.

    Args:
      config: resolved.
      model: from `build_model`.
      optimizer: from `build_optimizer`.

    Returns:
      step(state, batch) -> (state, metrics): metrics are float32 scalars, equal on all
      devices.
    """
    gradient = make_gradient(config, model)
    schedule = build_schedule(config)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = step_keys(config.seed, state.step)
        grads, net_state, metrics = gradient(state.params, state.net_state, keys, batch)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        net_state = _average_statistics(net_state)
        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema = {
                name: update_ema(state.ema[name], (params, net_state), decay, state.step)
                for name, decay in config.train.ema_decays.items()
            }
        metrics |= {
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "gradient_norm": optax.tree.norm(grads),
            **_clipping_metrics(opt_state),
        }
        return TrainState(state.step + 1, params, net_state, opt_state, ema), metrics

    return step


def _average_statistics(net_state: State) -> State:
    """Averages over devices; counters, which agree, stay integers."""
    return jax.tree.map(
        lambda x: jax.lax.pmean(x, AXIS) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        net_state,
    )


def _clipping_metrics(opt_state: Any) -> Metrics:
    clipping = clipping_state(opt_state)
    if clipping is None:
        return {}
    metrics = {
        "agc_clipped_fraction": clipping.clipped_fraction,
        "agc_max_ratio": clipping.max_ratio,
    }
    for name in ("clipped_fraction", "max_ratio"):
        layers = getattr(clipping, f"layer_{name}")
        for path, value in jax.tree_util.tree_leaves_with_path(layers):
            metrics[f"agc_{name}/{parameter_path(path)}"] = value
    return metrics


def map_train_step(step: TrainStep, devices: Sequence[jax.Device] | None = None) -> Any:
    """Maps a train step over devices; the buffers of its state are donated.

    The state is replicated; batches have a leading axis of local devices.

    Args:
      step: from `make_train_step`.
      devices: None: all of them.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )


def map_eval_step(step: Callable[..., Metrics]) -> Callable[..., Metrics]:
    """Maps step(params, net_state, batch) over all devices; see `map_train_step`."""
    return jax.pmap(step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=None)


def batch_shapes(
    config: Config, num_devices: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns name -> shape [D, N, ...] and dtype of this process's part of a batch.

    Args:
      config: resolved.
      num_devices: of a single process that has the whole batch; None: those there are.
    """
    local = num_devices or jax.local_device_count()
    shape = (local, config.data.batch_size // (num_devices or jax.device_count()))
    size = config.data.image_size
    return {
        "images": jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct(shape, jnp.int32),
        "example_index": jax.ShapeDtypeStruct(shape, jnp.int32),
    }


def put_batch(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Starts to copy this host's part of a batch, arrays [D, N, ...], to its devices.

    Returns:
      Arrays over all devices, as the mapped steps take them.
    """
    # One call for all arrays takes two thirds of the time of one call each.
    return jax.make_array_from_process_local_data(_batch_sharding(), dict(batch))


@functools.cache
def _batch_sharding() -> jax.sharding.NamedSharding:
    """The sharding of `jax.pmap`: one axis over all devices."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))


def replicate(tree: Any) -> Any:
    """Copies arrays to this process's devices, as the mapped steps return them.

    Every process must give the same arrays.
    """
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(tree, sharding)
