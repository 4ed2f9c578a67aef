"""The training loss: augmentation, forward pass, loss and metrics of some examples.

`config.train.loss` names a function of this file, or "package.module:function" with the
arguments and results of `softmax_cross_entropy`. Axis letters: N examples, K classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from nfnets import imports
from nfnets.augment import augment
from nfnets.models import Params, State, normalize_images
from nfnets.training.config import Config
from nfnets.training.state import Batch, Keys, Metrics, Network

LossAndMetrics = tuple[jax.Array, tuple[State, Metrics]]
LossFunction = Callable[[Config, Network, Params, State, Keys, Batch], LossAndMetrics]


def softmax_cross_entropy(
    config: Config,
    model: Network,
    params: Params,
    net_state: State,
    keys: Keys,
    batch: Batch,
) -> LossAndMetrics:
    """Mean softmax cross entropy of augmented images, with smoothed labels.

    Args:
      config: resolved.
      model: from `build_model`.
      params: that the gradient is taken of.
      net_state: batch-norm statistics.
      keys: random keys of the augmentation and of the model.
      batch: images uint8 [N, H, W, 3], labels int32 [N], example_index int32 [N] and, where
        examples are weighted, weight float32 [N].

    Returns:
      (loss, (net_state, metrics)): a float32 scalar, the new statistics, and float32
      scalars that are means over the examples, so that they can be averaged over passes and
      devices. Each is logged as `train/NAME`.
    """
    logits, targets, net_state = forward(config, model, params, net_state, keys, batch)
    losses = optax.softmax_cross_entropy(logits, targets)
    loss = weighted_mean(losses, batch)
    return loss, (net_state, {"loss": loss, "top1": accuracy(logits, targets)})


def sigmoid_cross_entropy(
    config: Config,
    model: Network,
    params: Params,
    net_state: State,
    keys: Keys,
    batch: Batch,
) -> LossAndMetrics:
    """Binary cross entropy summed over the classes; see `softmax_cross_entropy`."""
    logits, targets, net_state = forward(config, model, params, net_state, keys, batch)
    losses = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)
    loss = weighted_mean(losses, batch)
    return loss, (net_state, {"loss": loss, "top1": accuracy(logits, targets)})


def forward(
    config: Config,
    model: Network,
    params: Params,
    net_state: State,
    keys: Keys,
    batch: Batch,
) -> tuple[jax.Array, jax.Array, State]:
    """Augments a batch and runs the model on it.

    Args:
      config: see `softmax_cross_entropy`, as for the others.
      model: see there.
      params: see there.
      net_state: see there.
      keys: see there.
      batch: see there.

    Returns:
      (logits, targets, net_state): float32 [N, K] each, targets smoothed and mixed, each
      row with the sum 1.
    """
    augment_key, model_key = keys
    index = batch["example_index"]
    targets = jax.nn.one_hot(batch["labels"], config.model.num_classes)
    targets = optax.smooth_labels(targets, config.train.label_smoothing)
    with jax.named_scope("augment"):
        images, targets = augment(
            augment_key, batch["images"], targets, index, config.augment
        )
    images = normalize_images(images, config.data.mean_rgb, config.data.stddev_rgb)
    outputs, net_state = model.apply(params, net_state, model_key, images, True, index)
    return outputs["logits"], targets, net_state


def weighted_mean(losses: jax.Array, batch: Batch) -> jax.Array:
    """Returns the mean of losses [N], each times the batch's `weight` if it has one."""
    return jnp.mean(losses * batch["weight"] if "weight" in batch else losses)


def accuracy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the share of examples whose largest logit is at the largest target."""
    hits = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
    return jnp.mean(hits.astype(jnp.float32))


def find_loss(name: str) -> LossFunction:
    """Returns the function that `config.train.loss` names.

    Raises:
      UserError: the function is unknown.
    """
    functions = {
        "softmax_cross_entropy": softmax_cross_entropy,
        "sigmoid_cross_entropy": sigmoid_cross_entropy,
    }
    return imports.find(name, functions, "config.train.loss")
