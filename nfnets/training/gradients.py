"""The gradient of one device's examples: loss, accumulation, sharpness-aware ascent.

Axis letters as in `nfnets.training.step`: N examples of the device, M examples per pass.
"""

from collections.abc import Callable, Mapping
import fractions
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from nfnets.augment import augment
from nfnets.models import Model, Params, State, normalize_images
from nfnets.optim import rules, sam_perturbation
from nfnets.training.config import augment_options
from nfnets.training.state import AXIS

# images uint8 [N, H, W, 3], labels int32 [N], example_index int32 [N]; in the ascent pass
# also weight float32 [N].
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# Of the augmentation, and of the model.
Keys = tuple[jax.Array, jax.Array]
# (params, net_state, keys, batch) -> (gradients, net_state, metrics)
GradientFunction = Callable[[Params, State, Keys, Batch], tuple[Params, State, Metrics]]

# `sam.batch_fraction` is rounded to a fraction with at most this denominator.
_MAX_DENOMINATOR = 1000


def make_gradient(config: ml_collections.ConfigDict, model: Model) -> GradientFunction:
    """Builds the function that a step differentiates with, for one device.

    Args:
      config: resolved.
      model: from `build_model`.

    Returns:
      gradient(params, net_state, keys, batch) -> (gradients, net_state, metrics): means
      over the device's examples, computed `train.microbatch` examples at a time and added
      up in float32; at the perturbed parameters where `sam.rho` is set, which takes the
      axis name `AXIS`.
    """
    descent = _accumulated(_loss_gradient(config, model), config.train.microbatch)
    return descent if config.sam.rho is None else _sharpness_aware(config, descent)


def _loss_gradient(config: ml_collections.ConfigDict, model: Model) -> GradientFunction:
    """The gradient of the mean loss, all examples in one pass."""
    options = augment_options(config)

    def loss_and_metrics(
        params: Params, net_state: State, keys: Keys, batch: Batch
    ) -> tuple[jax.Array, tuple[State, Metrics]]:
        augment_key, model_key = keys
        index = batch["example_index"]
        targets = jax.nn.one_hot(batch["labels"], config.model.num_classes)
        targets = optax.smooth_labels(targets, config.train.label_smoothing)
        images, targets = augment(augment_key, batch["images"], targets, index, options)
        outputs, net_state = model.apply(
            params,
            net_state,
            model_key,
            normalize_images(images),
            is_training=True,
            example_index=index,
        )
        logits = outputs["logits"]
        losses = optax.softmax_cross_entropy(logits, targets)
        if "weight" in batch:
            losses = losses * batch["weight"]
        loss = jnp.mean(losses)
        hits = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
        metrics = {"loss": loss, "top1": jnp.mean(hits.astype(jnp.float32))}
        return loss, (net_state, metrics)

    differentiate = jax.value_and_grad(loss_and_metrics, has_aux=True)

    def gradient(
        params: Params, net_state: State, keys: Keys, batch: Batch
    ) -> tuple[Params, State, Metrics]:
        (_, (net_state, metrics)), gradients = differentiate(params, net_state, keys, batch)
        return gradients, net_state, metrics

    return gradient


def _accumulated(gradient: GradientFunction, microbatch: int | None) -> GradientFunction:
    """`gradient` over `microbatch` examples at a time; exact without batch statistics."""

    def accumulate(
        params: Params, net_state: State, keys: Keys, batch: Batch
    ) -> tuple[Params, State, Metrics]:
        size = batch["labels"].shape[0]
        if microbatch is None or size <= microbatch:
            return gradient(params, net_state, keys, batch)
        passes = size // microbatch

        def one_pass(carry: Any, part: Batch) -> tuple[Any, None]:
            sums, net_state = carry
            gradients, net_state, metrics = gradient(params, net_state, keys, part)
            return (jax.tree.map(jnp.add, sums, (gradients, metrics)), net_state), None

        parts = jax.tree.map(
            lambda x: x.reshape(passes, microbatch, *x.shape[1:]), dict(batch)
        )
        zeros = jax.tree.map(jnp.zeros_like, params)
        no_metrics = {"loss": jnp.zeros(()), "top1": jnp.zeros(())}
        (sums, net_state), _ = jax.lax.scan(
            one_pass, ((zeros, no_metrics), net_state), parts
        )
        gradients, metrics = jax.tree.map(lambda x: x / passes, sums)
        return gradients, net_state, metrics

    return accumulate


def _sharpness_aware(
    config: ml_collections.ConfigDict, descent: GradientFunction
) -> GradientFunction:
    """`descent` at the parameters plus `sam_perturbation` of a part of the batch."""
    options, microbatch = config.sam, config.train.microbatch
    unit = 2 if augment_options(config).mixes else 1  # mixed pairs stay together
    is_global = options.normalize == "global"

    def gradient(
        params: Params, net_state: State, keys: Keys, batch: Batch
    ) -> tuple[Params, State, Metrics]:
        part = ascent_examples(
            batch,
            options.batch_fraction,
            unit=unit,
            microbatch=microbatch,
            spread=is_global,
        )
        # Its batch statistics, if there are any, are not those of the step.
        ascent, _, _ = descent(params, net_state, keys, part)
        if is_global:
            ascent = jax.lax.pmean(ascent, AXIS)
        if config.optimizer.frozen:
            ascent = _without_frozen(ascent, config.optimizer.frozen)
        nearby = optax.tree.add(params, sam_perturbation(ascent, options.rho))
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
        share of the work; False: the device's first examples, as the published code does.

    Returns:
      A batch of about `fraction` x N examples with `weight`: 1, or 0 for what only pads.
    """
    share = fractions.Fraction(fraction).limit_denominator(_MAX_DENOMINATOR)
    size = batch["labels"].shape[0]
    count = -(-(size // unit) * share.numerator // share.denominator) * unit
    if microbatch is not None and count > microbatch:
        count = -(-count // microbatch) * microbatch
    if spread:
        index = batch["example_index"] // unit

        def chosen_before(index: jax.Array) -> jax.Array:
            return -(-index * share.numerator // share.denominator)

        chosen = chosen_before(index + 1) > chosen_before(index)
    else:
        first = -(-(size // unit) * share.numerator // share.denominator) * unit
        chosen = jnp.arange(size) < first
    order = jnp.argsort(~chosen, stable=True)[:count]
    part = {name: jnp.take(array, order, axis=0) for name, array in batch.items()}
    return {**part, "weight": chosen[order].astype(jnp.float32)}


def _without_frozen(gradients: Params, frozen: tuple[str, ...]) -> Params:
    """Zeros for parameters that are not trained: the perturbation leaves them alone."""
    factors = rules.learning_rate_multipliers(gradients, frozen=frozen)
    return jax.tree.map(
        lambda factor, g: g if factor else jnp.zeros_like(g), factors, gradients
    )
