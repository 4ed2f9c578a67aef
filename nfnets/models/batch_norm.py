"""Batch normalization, for the ResNets that normalizer-free networks are compared with."""

import haiku as hk
import jax
import jax.numpy as jnp

DECAY = 0.9
EPS = 1e-5


class RunningAverage(hk.ExponentialMovingAverage):
    """Haiku's bias-corrected moving average with a value before its first update.

    State: `counter`, int32 scalar, the number of updates; `hidden`, the average started
    from zero; `average`, the same with its bias towards zero corrected.
    """

    def start(self, shape: tuple[int, ...], value: float) -> None:
        """Creates the state, with `value` as the average, unless it exists."""
        hk.get_state("counter", (), jnp.int32, init=jnp.zeros)
        hk.get_state("hidden", shape, init=jnp.zeros)
        hk.get_state("average", shape, init=hk.initializers.Constant(value))


class BatchNorm(hk.Module):
    """Normalizes each channel over the examples and positions of the batch.

    Ioffe, Szegedy: "Batch Normalization" (2015). Parameters `scale` and `offset`
    [1, 1, 1, C] and state `mean_ema`, `var_ema` as in `hk.BatchNorm`, but float32 for
    inputs of any dtype, as is the computation: in half precision the difference of large
    squares loses its digits.
    """

    def __init__(self, axis_name: str | None, name: str) -> None:
        """Creates the layer.

        Args:
          axis_name: mapped axis over whose devices the batch statistics are averaged;
            None for statistics per device.
          name: Haiku name.
        """
        super().__init__(name=name)
        self._axis_name = axis_name
        self._mean_ema = RunningAverage(DECAY, name="mean_ema")
        self._var_ema = RunningAverage(DECAY, name="var_ema")

    def __call__(self, inputs: jax.Array, is_training: bool) -> jax.Array:
        """Normalizes feature maps.

        Args:
          inputs: [N, H, W, C].
          is_training: normalize by the statistics of the batch and add them to the running
            averages; otherwise normalize by the running averages.

        Returns:
          [N, H, W, C], of the dtype of `inputs`.
        """
        values = inputs.astype(jnp.float32)
        shape = (1, 1, 1, inputs.shape[-1])
        self._mean_ema.start(shape, 0.0)
        self._var_ema.start(shape, 1.0)
        if is_training:
            mean, variance = self._batch_statistics(values)
            self._mean_ema(mean)
            self._var_ema(variance)
        else:
            mean, variance = self._mean_ema.average, self._var_ema.average
        scale = hk.get_parameter("scale", shape, init=jnp.ones)
        offset = hk.get_parameter("offset", shape, init=jnp.zeros)
        outputs = (values - mean) * (scale * jax.lax.rsqrt(variance + EPS)) + offset
        return outputs.astype(inputs.dtype)

    def _batch_statistics(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and variance [1, 1, 1, C], over all devices of the axis."""
        mean = jnp.mean(values, axis=(0, 1, 2), keepdims=True)
        mean_of_squares = jnp.mean(jnp.square(values), axis=(0, 1, 2), keepdims=True)
        # `Model.init` traces outside of any mapped axis.
        if self._axis_name is not None and not hk.running_init():
            mean, mean_of_squares = jax.lax.pmean((mean, mean_of_squares), self._axis_name)
        variance = mean_of_squares - jnp.square(mean)
        return mean, jnp.maximum(variance, 0.0)  # rounding can make it negative
