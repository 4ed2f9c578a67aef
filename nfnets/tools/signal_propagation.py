"""Plots signal propagation through freshly initialized networks, block by block.

    nfnets signal_propagation resnet50 nf_resnet50 --out=spp.png

draws the squared mean and the variance of the channels and the variance of the residual
branch: the signal propagation plot of "Characterizing signal propagation to close the
performance gap in unnormalized ResNets" (2021), section 3. A network with batch
normalization shows a sawtooth, because every transition block resets the variance; a
normalizer-free one should follow its own prediction. NAME:FIELD=VALUE,... overrides fields
of `ModelSpec` and `BlockSpec`. Without names the paper's comparison is drawn: batch
normalization, standardized weights, and neither of them.

Axis letters: N examples, H height, W width, C channels, B blocks.
"""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from nfnets import cli
from nfnets.errors import UserError
from nfnets.models import Model, Params, State, create_model
from nfnets.models.residual import ResidualBlock
from nfnets.tools.curves import save_figure

DEFAULT_MODELS = (
    "resnet50:conv_init=he",
    "nf_resnet50",
    "nf_resnet50:weight_standardization=False,conv_init=he,scaled_activation=False",
)
_LINEAR_SPAN = 30.0  # largest over smallest value of a linear axis


@dataclasses.dataclass(frozen=True)
class SignalPropagation:
    """Statistics at initialization, by default for normally distributed images.

    Attributes:
      squared_mean: float [B + 1], mean over channels of their squared means, of the first
        block's input and of each block's output.
      variance: float [B + 1], mean over channels of their variances, of the same.
      branch_variance: float [B], variance of the residual branches before alpha and gain.
      predicted_variance: float [B], of the blocks' inputs, which are divided by its root;
        None for networks without that division.
    """

    squared_mean: np.ndarray
    variance: np.ndarray
    branch_variance: np.ndarray
    predicted_variance: np.ndarray | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and plots the models that the command line names."""
    parser = cli.Parser(
        "signal_propagation", "Plot signal propagation at initialization, block by block."
    )
    parser.add_argument(
        "models", nargs="*", metavar="NAME[:FIELD=VALUE,...]", default=DEFAULT_MODELS
    )
    parser.add_argument("--out", default="spp.png", help="image file to write")
    parser.add_argument("--image_size", type=cli.positive_int, default=128, help="pixels")
    parser.add_argument("--batch", type=cli.positive_int, default=16, help="images")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--skip_gain", type=float, default=1.0, help="of all branches")
    options = parser.parse_args(arguments)
    models = {text: _create(text) for text in options.models}
    results = {}
    for text, model in models.items():
        results[text] = measure(
            model,
            image_size=options.image_size,
            batch_size=options.batch,
            seed=options.seed,
            skip_gain=options.skip_gain,
        )
        last = results[text].variance[-1]
        print(f"{text}: variance {last:.3g} after {sum(model.spec.depths)} blocks")
    plot(results, options.out)
    print(options.out)


def parse_model(text: str) -> tuple[str, dict[str, Any]]:
    """Splits NAME[:FIELD=VALUE,...] into the name and the overrides.

    Args:
      text: values are Python literals or plain text.

    Raises:
      UserError: an item has no equals sign.
    """
    name, _, listed = text.partition(":")
    overrides: dict[str, Any] = {}
    for item in filter(None, listed.split(",")):
        field, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"{text}: expected FIELD=VALUE, not {item!r}")
        try:
            overrides[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[field] = value
    return name, overrides


def _create(text: str) -> Model:
    """Creates the model NAME[:FIELD=VALUE,...] without dropout and stochastic depth."""
    name, overrides = parse_model(text)
    overrides.setdefault("drop_rate", 0.0)
    overrides.setdefault("stochdepth_rate", 0.0)
    try:
        return create_model(name, **overrides)
    except (TypeError, ValueError) as error:
        raise UserError(f"{text}: {error}") from None


def measure(
    model: Model,
    *,
    image_size: int = 128,
    batch_size: int = 16,
    seed: int = 0,
    skip_gain: float = 1.0,
    images: jax.Array | None = None,
) -> SignalPropagation:
    """Measures a freshly initialized network in training mode.

    Args:
      model: without dropout and stochastic depth.
      image_size: side of the images, pixels.
      batch_size: number of images, of independent unit normal values.
      seed: of weights and images.
      skip_gain: value of the learned gains of the branches; with their initial 0 most
        networks would only pass on the shortcuts.
      images: float [N, H, W, 3], normalized, in place of random ones.
    """
    weights_key, images_key = jax.random.split(jax.random.key(seed))
    if images is None:
        images = jax.random.normal(images_key, (batch_size, image_size, image_size, 3))
    params, state = model.init(weights_key, images)
    branch_gains = ["skip_gain"]
    if model.spec.block.zero_last_gain:
        branch_gains.append("conv2:gain")
    params = {
        module: {
            name: jnp.full(array.shape, skip_gain)
            if f"{module}:{name}".endswith(tuple(branch_gains))
            else array
            for name, array in arrays.items()
        }
        for module, arrays in params.items()
    }

    @jax.jit
    def run(params: Params, state: State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden: list[jax.Array] = []
        branches: list[jax.Array] = []

        def observe(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = next_call(*args, **kwargs)
            if isinstance(context.module, ResidualBlock):
                if context.method_name == "branch":
                    feature_maps, scale = result
                    branches.append(_channel_statistics(feature_maps * scale))
                elif context.method_name == "__call__":
                    if not hidden:
                        hidden.append(_channel_statistics(args[0]))
                    hidden.append(_channel_statistics(result))
            return result

        with hk.intercept_methods(observe):
            model.apply(params, state, None, images, is_training=True)
        return jnp.stack(hidden), jnp.stack(branches)

    hidden, branches = map(np.asarray, run(params, state, images))
    predicted = np.square(model.spec.expected_stds())
    return SignalPropagation(
        squared_mean=hidden[:, 0],
        variance=hidden[:, 1],
        branch_variance=branches[:, 1],
        predicted_variance=predicted if model.spec.block.scale_inputs else None,
    )


def _channel_statistics(values: jax.Array) -> jax.Array:
    """Returns the means over C of [squared mean, variance] of [N, H, W, C]."""
    values = values.astype(jnp.float32)
    mean = jnp.mean(values, axis=(0, 1, 2))
    variance = jnp.var(values, axis=(0, 1, 2))
    return jnp.stack([jnp.mean(mean**2), jnp.mean(variance)])


def plot(results: Mapping[str, SignalPropagation], out: str | pathlib.Path) -> None:
    """Draws the signal propagation of several networks into one image.

    Args:
      results: label -> statistics.
      out: path of the image.

    Raises:
      UserError: the image cannot be written.
    """
    figure = Figure(figsize=(13, 4.0 + 0.2 * len(results)), layout="constrained")
    means, variances, branches = axes = figure.subplots(1, 3)
    for number, (label, result) in enumerate(results.items()):
        style = {"color": f"C{number}", "marker": "o", "markersize": 3.5, "linewidth": 1.3}
        block = np.arange(len(result.variance))
        means.plot(block, result.squared_mean, label=label, **style)
        variances.plot(block, result.variance, **style)
        branches.plot(block[1:], result.branch_variance, **style)
        if result.predicted_variance is not None:
            predicted = result.predicted_variance
            variances.plot(block[:-1], predicted, color="black", linestyle="--", zorder=3)
    means.set_title("Average channel squared mean")
    variances.set_title("Average channel variance")
    branches.set_title("Residual branch variance")
    for place in axes:
        place.set_xlabel("block (0: input of the first)")
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        _choose_scale(place)
        place.grid(alpha=0.3)
    variances.plot([], [], color="black", linestyle="--", label="predicted, beta squared")
    variances.legend()
    figure.suptitle("Signal propagation at initialization, unit normal images")
    figure.legend(*means.get_legend_handles_labels(), loc="outside lower center", ncols=1)
    save_figure(figure, out)


def _choose_scale(axes: Axes) -> None:
    """Uses a logarithmic scale if the curves span decades, else a linear one from 0."""
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    positive = values[values > 0]
    if len(positive) and positive.max() > _LINEAR_SPAN * positive.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
