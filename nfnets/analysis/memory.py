"""Memory of a training step, as XLA plans it."""

import jax
import jax.numpy as jnp
import optax

from nfnets.models import Model, Params, State
from nfnets.models.counting import initial_shapes
from nfnets.optim import create_optimizer


def training_step_bytes(model: Model, *, image_size: int, batch_size: int) -> int:
    """Compiles one training step for one device and returns the bytes it needs.

    The step is a forward and a backward pass and the published optimizer's update; the
    bytes are those of its arguments and results (parameters and momentum count once, as
    they are updated in place) and of everything that lives in between. Nothing is run.

    Args:
      model: from `create_model`.
      image_size: side of the training images, pixels.
      batch_size: images.
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

    params, state = initial_shapes(model)
    variables = (params, state, jax.eval_shape(optimizer.init, params))
    images = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    lowered = jax.jit(step, donate_argnums=0).lower(
        variables, jax.eval_shape(lambda: jax.random.key(0)), images, labels
    )
    plan = lowered.compile().memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )
