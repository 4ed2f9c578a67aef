"""Normalization of images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nfnets.models.spec import MEAN_RGB, STDDEV_RGB


def normalize_images(
    images: jax.Array,
    mean_rgb: Sequence[float] | None = None,
    stddev_rgb: Sequence[float] | None = None,
) -> jax.Array:
    """Subtracts each channel's mean and divides by its standard deviation.

    Args:
      images: uint8 or float [..., 3], in [0, 255].
      mean_rgb: means of the three channels, on the scale of the images; None:
        `MEAN_RGB`.
      stddev_rgb: standard deviations of the three channels; None: `STDDEV_RGB`.

    Returns:
      float32 [..., 3].
    """
    mean = jnp.asarray(MEAN_RGB if mean_rgb is None else mean_rgb, jnp.float32)
    stddev = jnp.asarray(STDDEV_RGB if stddev_rgb is None else stddev_rgb, jnp.float32)
    return (images.astype(jnp.float32) - mean) / stddev
