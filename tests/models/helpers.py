"""Measurements shared by several tests of models."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets.models.residual import ResidualBlock


def block_input_variances(model, size, batch):
    """Variance of each block's input divided by the predicted one, with all gains 1."""
    params, _ = model.init(jax.random.key(1), jnp.zeros((1, size, size, 3)))
    for module, arrays in params.items():
        if "skip_gain" in arrays:
            arrays["skip_gain"] = jnp.ones(())
        if "gain" in arrays:
            assert module.endswith("conv2") or (arrays["gain"] == 1).all()
            arrays["gain"] = jnp.ones_like(arrays["gain"])
    images = jax.random.normal(jax.random.key(2), (batch, size, size, 3))
    found = []

    def observe(next_call, args, kwargs, context):
        if isinstance(context.module, ResidualBlock) and context.method_name == "__call__":
            found.append(jnp.var(args[0]) / context.module.expected_std**2)
        return next_call(*args, **kwargs)

    def forward(params):
        found.clear()
        with hk.intercept_methods(observe):
            model.apply(params, {}, None, images, is_training=False)
        return list(found)

    # `intercept_methods` works around a transformed call too.
    return np.asarray(jax.jit(forward)(params))
