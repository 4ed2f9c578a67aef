"""One training step and one evaluation step, as pure functions, and their mapping.

Axis letters: N examples per device, H height, W width.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from nfnets.models import Model, Params, State, normalize_images
from nfnets.optim import clipping_state, global_norm, rules, update_ema
from nfnets.training.gradients import Batch, Keys, Metrics, make_gradient
from nfnets.training.state import AXIS, TrainState, build_schedule, ema_decays

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
    config: ml_collections.ConfigDict,
    model: Model,
    optimizer: optax.GradientTransformation,
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
    decays = ema_decays(config)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = step_keys(config.seed, state.step)
        grads, net_state, metrics = gradient(state.params, state.net_state, keys, batch)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        net_state = _average_statistics(net_state)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = {
            name: update_ema(state.ema[name], (params, net_state), decay, state.step)
            for name, decay in decays.items()
        }
        metrics |= {
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "gradient_norm": global_norm(grads),
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
            metrics[f"agc_{name}/{rules.parameter_path(path)}"] = value
    return metrics


def make_eval_step(
    model: Model,
) -> Callable[[Params, State, Batch], Metrics]:
    """Builds the evaluation step of one device, to be mapped with the axis name `AXIS`.

    Args:
      model: from `build_model`.

    Returns:
      step(params, net_state, batch) -> sums over all devices: `examples`, `top1`, `top5`
      (int32 counts) and `loss` (float32). Examples whose `mask` is False do not count.
    """

    def step(params: Params, net_state: State, batch: Batch) -> Metrics:
        outputs, _ = model.apply(
            params, net_state, None, normalize_images(batch["images"]), is_training=False
        )
        logits, labels, mask = outputs["logits"], batch["labels"], batch["mask"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        # The label's rank. Ties and NaN count against it: a network that has diverged
        # must not score.
        others = jnp.arange(logits.shape[-1]) != labels[:, None]
        rank = jnp.sum(~(logits < of_label) & others, axis=-1)

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(mask, values, 0))

        sums = {
            "examples": total(jnp.ones_like(labels)),
            "top1": total((rank < 1).astype(jnp.int32)),
            "top5": total((rank < 5).astype(jnp.int32)),
            "loss": total(losses),
        }
        return jax.lax.psum(sums, AXIS)

    return step


def map_train_step(step: TrainStep) -> jax.stages.Wrapped:
    """Maps a train step over all devices; its state's buffers are given up to it.

    The state is replicated; batches have a leading axis of local devices.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
    )


def map_eval_step(
    step: Callable[[Params, State, Batch], Metrics],
) -> Callable[[Params, State, Batch], Metrics]:
    """Maps an evaluation step over all devices."""
    return jax.pmap(step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=None)


def batch_shapes(config: ml_collections.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what this process's part of a training batch looks like.

    Args:
      config: resolved.

    Returns:
      Name -> shape [local devices, N, ...] and dtype, as the mapped step takes them.
    """
    shape = (jax.local_device_count(), config.data.batch_size // jax.device_count())
    size = config.data.image_size
    return {
        "images": jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct(shape, jnp.int32),
        "example_index": jax.ShapeDtypeStruct(shape, jnp.int32),
    }


def device_mesh() -> jax.sharding.Mesh:
    """The one-dimensional mesh that `jax.pmap` lays over all devices."""
    return jax.sharding.Mesh(np.asarray(jax.devices()), (AXIS,))


def put_batch(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Starts to copy this host's part of a batch to its devices.

    Args:
      batch: arrays [local devices, N, ...].

    Returns:
      Arrays over all devices, as the mapped steps take them.
    """
    # In one call, which takes two thirds of the time of three.
    return jax.make_array_from_process_local_data(_batch_sharding(), dict(batch))


@functools.cache
def _batch_sharding() -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(device_mesh(), jax.sharding.PartitionSpec(AXIS))


def replicate(tree: Any) -> Any:
    """Copies a tree of arrays to this process's devices, as the mapped steps return it.

    Every process is to give the same arrays.
    """
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(tree, sharding)
