"""The last step between pixels and networks."""

import jax
import jax.numpy as jnp

# Per channel (red, green, blue), on the scale 0 to 255: ImageNet's, which the published
# weights expect.
MEAN_RGB = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STDDEV_RGB = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def normalize_images(images: jax.Array) -> jax.Array:
    """Subtracts the mean and divides by the standard deviation of each channel.

    Args:
      images: uint8 or float [..., 3], in [0, 255].

    Returns:
      float32 [..., 3].
    """
    mean = jnp.asarray(MEAN_RGB, jnp.float32)
    stddev = jnp.asarray(STDDEV_RGB, jnp.float32)
    return (images.astype(jnp.float32) - mean) / stddev
