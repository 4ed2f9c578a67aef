"""The gradient of one device's examples: accumulation and sharpness-aware ascent.

Axis letters: N examples of the device, M examples per pass.
"""

from collections.abc import Callable
import fractions
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nfnets.models import Params, State
from nfnets.optim import rules, sam_perturbation
from nfnets.training.config import Config
from nfnets.training.loss import find_loss
from nfnets.training.state import AXIS, Batch, Keys, Metrics, Network

# (params, net_state, keys, batch) -> (gradients, net_state, metrics)
GradientFunction = Callable[[Params, State, Keys, Batch], tuple[Params, State, Metrics]]

# `sam.batch_fraction` is rounded to a fraction with at most this denominator.
_MAX_DENOMINATOR = 1000


def make_gradient(config: Config, model: Network) -> GradientFunction:
    """Builds the gradient function of one device.

    Args:
      config: resolved.
      model: from `build_model`.

    Returns:
      gradient(params, net_state, keys, batch) -> (gradients, net_state, metrics): means
      over the device's examples, computed `train.microbatch` examples at a time and added
      up in float32; where `sam.rho` is set, at the perturbed parameters, which takes the
      axis name `AXIS`.
    """
    loss = functools.partial(find_loss(config.train.loss), config, model)
    differentiate = jax.grad(loss, has_aux=True)

    def gradient(
        params: Params, net_state: State, keys: Keys, batch: Batch
    ) -> tuple[Params, State, Metrics]:
        gradients, (net_state, metrics) = differentiate(params, net_state, keys, batch)
        return gradients, net_state, metrics

    micro = config.train.microbatch
    descent = _accumulated(gradient, micro) if isinstance(micro, int) else gradient
    return descent if config.sam.rho is None else _sharpness_aware(config, descent)


def _accumulated(gradient: GradientFunction, microbatch: int) -> GradientFunction:
    """`gradient` over `microbatch` examples at a time; exact without batch statistics."""

    def accumulate(
        params: Params, net_state: State, keys: Keys, batch: Batch
    ) -> tuple[Params, State, Metrics]:
        size = batch["labels"].shape[0]
        if size <= microbatch:
            return gradient(params, net_state, keys, batch)
        passes = size // microbatch
        parts = jax.tree.map(
            lambda x: x.reshape(passes, microbatch, *x.shape[1:]), dict(batch)
        )

        def one_pass(carry: Any, part: Batch) -> tuple[Any, None]:
            sums, net_state = carry
            gradients, net_state, metrics = gradient(params, net_state, keys, part)
            return (jax.tree.map(jnp.add, sums, (gradients, metrics)), net_state), None

        first = {name: part[0] for name, part in parts.items()}
        shapes = jax.eval_shape(gradient, params, net_state, keys, first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[2]))
        (sums, net_state), _ = jax.lax.scan(one_pass, (zeros, net_state), parts)
        gradients, metrics = jax.tree.map(lambda x: x / passes, sums)
        return gradients, net_state, metrics

    return accumulate


def _sharpness_aware(config: Config, descent: GradientFunction) -> GradientFunction:
    """`descent` at the parameters plus `sam_perturbation` of a part of the batch.

    "Sharpness-Aware Minimization for Efficiently Improving Generalization" (2021),
    algorithm 1.
    """
    options, micro = config.sam, config.train.microbatch
    is_global = options.normalize == "global"
    rho = options.rho
    assert rho is not None

    def gradient(
        params: Params, net_state: State, keys: Keys, batch: Batch
    ) -> tuple[Params, State, Metrics]:
        part = ascent_examples(
            batch,
            options.batch_fraction,
            unit=2 if config.augment.mixes else 1,  # mixed pairs stay together
            microbatch=micro if isinstance(micro, int) else None,
            spread=is_global,
        )
        # The statistics of the ascent's examples are not those of the step.
        ascent, _, _ = descent(params, net_state, keys, part)
        if is_global:
            ascent = jax.lax.pmean(ascent, AXIS)
        if config.optimizer.frozen:
            ascent = _without_frozen(ascent, config.optimizer.frozen)
        nearby = optax.tree.add(params, sam_perturbation(ascent, rho))
        return descent(nearby, net_state, keys, batch)

    return gradient


def ascent_examples(
    batch: Batch, fraction: float, *, unit: int, microbatch: int | None, spread: bool
) -> Batch:
    """Picks the examples of the ascent step.

    Args:
      batch: of one device, N consecutive examples of the global batch.
      fraction: share of the batch, in (0, 1].
      unit: consecutive examples that stay together; divides N.
      microbatch: M; the result is padded to a multiple of it, or shorter than it.
      spread: take the first of every 1 / `fraction` units of the global batch, so that
        the choice does not depend on how the batch is divided and every device has its
        share of the work; False: the device's first examples, as in the published code.

    Returns:
      A batch of about `fraction` x N examples with `weight`: 1, or 0 for padding.
    """
    share = fractions.Fraction(fraction).limit_denominator(_MAX_DENOMINATOR)
    size = batch["labels"].shape[0]
    count = wanted = -(-(size // unit) * share.numerator // share.denominator) * unit
    if microbatch is not None and count > microbatch:
        count = -(-count // microbatch) * microbatch
    if spread:
        index = batch["example_index"] // unit

        def chosen_before(index: jax.Array) -> jax.Array:
            return -(-index * share.numerator // share.denominator)

        chosen = chosen_before(index + 1) > chosen_before(index)
    else:
        chosen = jnp.arange(size) < wanted
    order = jnp.argsort(~chosen, stable=True)[:count]
    part = {name: jnp.take(array, order, axis=0) for name, array in batch.items()}
    return {**part, "weight": chosen[order].astype(jnp.float32)}


def _without_frozen(gradients: Params, frozen: tuple[str, ...]) -> Params:
    """Sets the gradients of frozen parameters to zero: they are not perturbed."""
    factors = rules.learning_rate_multipliers(gradients, frozen=frozen)
    return jax.tree.map(
        lambda factor, g: g if factor else jnp.zeros_like(g), factors, gradients
    )
