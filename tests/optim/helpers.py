"""Small parameter trees, and an optimizer that tests name by its path."""

import jax
import jax.numpy as jnp
import optax

HEAD = "Net/~/linear"
BODY = "Net/~/conv"


def small_params(weight=2.0, dtype=jnp.float32):
    """Seven numbers with the paths of a network without blocks."""
    return {
        BODY: {
            "w": jnp.full((2, 1), weight, dtype),
            "gain": jnp.ones(1, dtype),
            "bias": jnp.ones(1, dtype),
        },
        HEAD: {"w": jnp.full((2, 1), weight, dtype), "b": jnp.ones(1, dtype)},
    }


def random_like(tree, seed=0):
    """Standard normal arrays, different for each leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten(
        [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )


def one_update(optimizer, params, gradients):
    """The updates and the state after the first step."""
    return optimizer.update(gradients, optimizer.init(params), params)


def doubled_sgd(learning_rate, factor=2.0):
    """Named by path in tests."""
    return optax.chain(optax.scale(factor), optax.scale_by_learning_rate(learning_rate))


def decoupled_sgd(learning_rate, weight_decay=0.0, mask=None):
    """Named by path in tests; takes care of weight decay itself."""
    return optax.chain(
        optax.scale(3.0),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def not_an_optimizer(learning_rate):
    """Named by path in tests."""
    return learning_rate


def doubled_schedule(peak, total_steps, warmup_steps, offset=0.0):
    """Named by path in tests."""
    return lambda step: 2 * peak + offset + 0 * step * total_steps * warmup_steps
