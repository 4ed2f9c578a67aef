"""Small networks and one training run, built from the library's public parts."""

from collections.abc import Callable
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import data
import nfnets
from nfnets import UserError, optim
from nfnets.models import Model, Params, State, normalize_images
from nfnets.models import names as paths
from nfnets.models.spec import StemConv

# Parts of a network that AGC can clip; gains and biases belong to their layer, the
# classifier's bias to `rest`, as in `nfnets.create_optimizer`.
PARTS = ("stem", "stage_0", "stage_1", "stage_2", "stage_3", "rest", "classifier")

_INF = float("inf")
_NETWORKS = {"nf_resnet": "nf_resnet50", "nfnet": "nfnet_tiny", "batch_norm": "resnet50"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One run.

    Attributes:
      network: `nf_resnet`, `nfnet` or `batch_norm`; see `create_model`.
      depth: blocks in each of the four stages.
      data: see `data.load`.
      batch: images per step; an epoch drops the rest.
      rate: learning rate per 256 images: the peak is rate x batch / 256.
      clipping: `none`, `agc` or `norm` (by the gradient's global norm).
      threshold: AGC's lambda or the largest norm.
      clipped: the `PARTS` that AGC clips.
      epochs: through the training images; a tenth of them is warm-up.
      seed: of the initial parameters and the order of the images.
      model: overrides of the model's description, as pairs.
      statistics: images whose statistics batch normalization computes together, as if
        each group were on a device of its own; 0: the whole batch.
    """

    network: str = "nf_resnet"
    depth: int = 1
    data: str = "digits"
    batch: int = 32
    rate: float = 0.1
    clipping: str = "none"
    threshold: float = _INF
    clipped: tuple[str, ...] = PARTS[:-1]
    epochs: int = 20
    seed: int = 0
    model: tuple[tuple[str, Any], ...] = ()
    statistics: int = 0


def create_model(settings: Settings) -> Model:
    """Creates a network of four stages with widths 32 to 96 for small images.

    The stem keeps the resolution of digits and MNIST scans, and that of larger images
    divided by four. Stages 1 and 2 halve it.
    """
    if settings.network not in _NETWORKS:
        raise UserError(f"network must be one of {', '.join(_NETWORKS)}")
    stride = 2 if settings.data == "photographs" else 1
    names = (
        ["stem_conv0", "stem_conv1"] if settings.network == "nfnet" else ["initial_conv"]
    )
    strides = [stride] * 2 if settings.network == "nfnet" else [stride * stride]
    overrides: dict[str, Any] = dict(
        stem=tuple(
            StemConv(
                name=name, channels=16 * (1 + index), kernel_size=3, stride=strides[index]
            )
            for index, name in enumerate(names)
        ),
        widths=(32, 64, 96, 96),
        depths=(settings.depth,) * 4,
        strides=(1, 2, 2, 1),
        stochdepth_rate=0.0,
    )
    if settings.network != "nfnet":
        overrides["stem_pool"] = False
    overrides |= dict(settings.model)
    return nfnets.create_model(_NETWORKS[settings.network], num_classes=10, **overrides)


def create_optimizer(
    settings: Settings, rate: jax.Array, limits: tuple[jax.Array, jax.Array]
) -> optax.GradientTransformation:
    """Creates Nesterov SGD after clipping.

    Args:
      settings: those that `shape_of` keeps.
      rate: peak learning rate per 256 images, float32 scalar.
      limits: largest norm of the gradient and AGC's lambda, float32 scalars; infinity
        leaves gradients as they are, so that one program serves all kinds of clipping.
    """
    steps = steps_per_epoch(settings) * settings.epochs
    schedule = optim.create_schedule("cosine", 1.0, steps, max(1, steps // 10))
    max_norm, agc_lambda = limits
    return optax.chain(
        optax.clip_by_global_norm(max_norm),
        nfnets.adaptive_grad_clip(
            agc_lambda, mask=functools.partial(is_in, settings.clipped)
        ),
        nfnets.create_optimizer(
            lambda step: rate * (settings.batch / 256) * schedule(step), clipping=None
        ),
    )


def is_in(parts: tuple[str, ...], params: Params) -> Any:
    """Returns a tree of bools: whether a parameter belongs to one of the parts."""

    def part(path: str) -> str:
        block = paths.block_index(path)
        if block is not None:
            return f"stage_{block * 4 // blocks}"
        if paths.is_stem(path):
            return "stem"
        return "classifier" if paths.is_head(path) and path.endswith(":w") else "rest"

    blocks = 1 + max(paths.block_index(module) or 0 for module in params)
    return jax.tree_util.tree_map_with_path(
        lambda key, _: part(paths.parameter_path(key)) in parts, params
    )


def steps_per_epoch(settings: Settings) -> int:
    """Returns the number of whole batches in the training images."""
    return len(data.load(settings.data).train_labels) // settings.batch


# From a key, uint8 images and labels to float images in [0, 255] and targets [N, 10].
Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Carry = tuple[Params, State, optax.OptState]


def smooth(
    key: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Leaves the images alone and smooths the labels by 0.1."""
    del key
    return images, optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.1)


def apply_in_groups(
    settings: Settings, model: Model, params: Params, state: State, images: jax.Array
) -> tuple[jax.Array, State]:
    """Returns training-mode logits [N, 10] and the mean of the groups' new states.

    Args:
      settings: `statistics` is the size of a group.
      model: from `create_model`.
      params: of the model.
      state: of the model.
      images: [N, H, W, 3], normalized.
    """
    groups = images.reshape(-1, settings.statistics or len(images), *images.shape[1:])
    outputs, states = jax.vmap(
        lambda group: model.apply(params, state, None, group, is_training=True)
    )(groups)
    # All counters of updates are equal.
    state = jax.tree.map(lambda values: values.mean(0).astype(values.dtype), states)
    return outputs["logits"].reshape(len(images), -1), state


@functools.lru_cache(maxsize=8)
def compile_epoch(settings: Settings, augment: Augment = smooth) -> Callable:
    """Returns a compiled epoch, (carry, key, rate, limits) -> (carry, mean loss).

    Args:
      settings: from `shape_of`.
      augment: applied to every batch.
    """
    model, images = create_model(settings), data.load(settings.data)
    count = steps_per_epoch(settings)
    pixels, labels = jnp.asarray(images.train_images), jnp.asarray(images.train_labels)

    def loss_fn(
        params: Params, state: State, key: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, State]:
        batch, targets = augment(key, pixels[index], labels[index])
        batch = normalize_images(batch, images.mean_rgb, images.stddev_rgb)
        logits, state = apply_in_groups(settings, model, params, state, batch)
        return optax.softmax_cross_entropy(logits, targets).mean(), state

    def epoch(
        carry: Carry, key: jax.Array, rate: jax.Array, limits: tuple[jax.Array, jax.Array]
    ) -> tuple[Carry, jax.Array]:
        optimizer = create_optimizer(settings, rate, limits)

        def step(
            carry: Carry, inputs: tuple[jax.Array, jax.Array]
        ) -> tuple[Carry, jax.Array]:
            params, state, opt_state = carry
            gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, state), gradients = gradient_fn(params, state, *inputs)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), state, opt_state), loss

        order = jax.random.permutation(key, len(labels))[: count * settings.batch]
        inputs = jax.random.split(key, count), order.reshape(count, settings.batch)
        carry, losses = jax.lax.scan(step, carry, inputs)
        return carry, losses.mean()

    return jax.jit(epoch)


@functools.lru_cache(maxsize=8)
def compile_test(settings: Settings) -> Callable:
    """Returns a compiled function (params, state) -> accuracy on the test images."""
    model, images = create_model(settings), data.load(settings.data)
    pixels = jnp.asarray(images.test_images)

    @jax.jit
    def accuracy(params: Params, state: State) -> jax.Array:
        batch = normalize_images(pixels, images.mean_rgb, images.stddev_rgb)
        logits = model.apply(params, state, None, batch)[0]["logits"]
        return jnp.mean(jnp.argmax(logits, axis=-1) == images.test_labels)

    return accuracy


def shape_of(settings: Settings) -> Settings:
    """Returns the settings without what a compiled program takes as an argument."""
    return dataclasses.replace(settings, seed=0, rate=0.1, clipping="none", threshold=_INF)


def train(settings: Settings, augment: Augment = smooth) -> dict[str, Any]:
    """Trains one network; a run stops at the first epoch whose loss is not finite.

    Returns:
      accuracy: on the test images in percent; 10, as by guessing, if the run diverged.
      diverged: whether the loss became infinite or NaN.
      losses: mean training loss of each epoch, up to the last finite one.
      seconds: CPU time of the run, with compilation if there was any.
    """
    start = time.process_time()
    epoch, key = compile_epoch(shape_of(settings), augment), jax.random.key(settings.seed)
    rate = jnp.float32(settings.rate)
    limits = tuple(
        jnp.float32(settings.threshold if settings.clipping == kind else _INF)
        for kind in ("norm", "agc")
    )
    model = create_model(settings)
    params, state = model.init(key, jnp.asarray(data.load(settings.data).train_images[:1]))
    carry = (params, state, create_optimizer(settings, rate, limits).init(params))
    losses: list[float] = []
    for index in range(settings.epochs):
        carry, loss = epoch(carry, jax.random.fold_in(key, index), rate, limits)
        if not jnp.isfinite(loss):
            break
        losses.append(float(f"{loss:.4g}"))
    diverged = len(losses) < settings.epochs
    test = dataclasses.replace(
        shape_of(settings), batch=1, epochs=1, clipped=(), statistics=0
    )
    accuracy = 0.1 if diverged else compile_test(test)(*carry[:2])
    return {
        "accuracy": round(100 * float(accuracy), 2),
        "diverged": diverged,
        "losses": losses,
        "seconds": round(time.process_time() - start, 2),
    }
