"""Normalization of images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nfnets.models.spec import MEAN_RGB, STDDEV_RGB


def normalize_images(
    images: jax.Array,
    mean_rgb: Sequence[float] = MEAN_RGB,
    stddev_rgb: Sequence[float] = STDDEV_RGB,
) -> jax.Array:
    """Subtracts each channel's mean and divides by its standard deviation.

    Args:
      images: uint8 or float [..., 3], in [0, 255].
      mean_rgb: means of the three channels, on the scale of the images.
      stddev_rgb: standard deviations of the three channels.

    Returns:
      float32 [..., 3].
    """
    mean = jnp.asarray(mean_rgb, jnp.float32)
    stddev = jnp.asarray(stddev_rgb, jnp.float32)
    return (images.astype(jnp.float32) - mean) / stddev
