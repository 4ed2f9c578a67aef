"""The platform that models are compiled for.

On CPU, convolutions and GELUs have forms of their own (see `nfnets.cpu`), chosen when a
model is traced. To compile or export a model for another platform, trace it inside of
`compile_for`:

    with compile_for("tpu"):
        exported = jax.export.export(jax.jit(forward), platforms=["tpu"])(params, images)
"""

from contextlib import AbstractContextManager

import jax

# JAX's contexts are part of the keys of its caches, unlike context variables: a function
# traced for one platform is traced again for another.
_TARGET = jax.make_user_context(default_value=None)


def compile_for(platform: str) -> AbstractContextManager[None]:
    """Returns a context manager in which models are traced for another platform.

    Args:
      platform: `cpu`, `gpu`, `cuda`, `rocm` or `tpu`.
    """
    return _TARGET(platform)


def target_platform() -> str:
    """Returns the platform of `compile_for`, by default that of JAX's devices."""
    return _TARGET.value or jax.default_backend()
