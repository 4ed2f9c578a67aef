"""What a training step costs: memory, as XLA plans it, and time."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import optax

from nfnets.models import Model, Params, State
from nfnets.optim import create_optimizer

_TIMED_STEPS = 3


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of one training step on one device.

    Attributes:
      bytes: of arguments and results (parameters and momentum count once, as they are
        updated in place) and of everything that lives in between.
      seconds: of the fastest of several steps; None where none was run.
    """

    bytes: int
    seconds: float | None


def training_step_cost(
    model: Model, *, image_size: int, batch_size: int, run: bool = False
) -> StepCost:
    """Compiles a training step and, if wanted, runs it a few times.

    The step is a forward and a backward pass and the published optimizer's update.

    Args:
      model: from `create_model`.
      image_size: side of the training images, pixels.
      batch_size: images.
      run: measure the time too.
    """
    optimizer = create_optimizer(0.1)

    def loss_fn(
        params: Params, state: State, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, State]:
        outputs, state = model.apply(params, state, key, images, is_training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], labels)
        return jnp.mean(losses), state

    def step(
        variables: tuple[Params, State, optax.OptState],
        key: jax.Array,
        images: jax.Array,
        labels: jax.Array,
    ) -> tuple[Params, State, optax.OptState]:
        params, state, opt_state = variables
        grads, state = jax.grad(loss_fn, has_aux=True)(params, state, key, images, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state

    params, state = model.shapes()
    variables = (params, state, jax.eval_shape(optimizer.init, params))
    images = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    lowered = jax.jit(step, donate_argnums=0).lower(
        variables, jax.eval_shape(lambda: jax.random.key(0)), images, labels
    )
    compiled = lowered.compile()
    plan = compiled.memory_analysis()
    planned = (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )
    if not run:
        return StepCost(planned, None)
    key = jax.random.key(0)
    params, state = model.init(key, images)
    variables = (params, state, optimizer.init(params))
    pixels, targets = jnp.zeros(images.shape), jnp.zeros(labels.shape, jnp.int32)
    seconds = []
    for _ in range(_TIMED_STEPS):
        start = time.monotonic()
        variables = jax.block_until_ready(compiled(variables, key, pixels, targets))
        seconds.append(time.monotonic() - start)
    return StepCost(planned, min(seconds))
