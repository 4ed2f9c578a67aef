"""How the signal's size develops along the blocks of freshly initialised networks.

    python -m nfnets.analysis.signal_propagation resnet50 nf_resnet50 --out=spp.png

draws, block by block, the squared mean and the variance of the channels and the variance
of the residual branch: the signal propagation plot of "Characterizing signal propagation
to close the performance gap in unnormalized ResNets" (2021), section 3. A network with
batch normalisation shows a saw-tooth, because every transition block resets the variance;
a normalizer-free one should follow its own prediction. NAME:FIELD=VALUE,... overrides
fields of `ModelSpec` and `BlockSpec`. Without names the paper's comparison is drawn:
batch normalisation, standardised weights, and neither of them.

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

from nfnets import command
from nfnets.command import positive_int
from nfnets.errors import UserError
from nfnets.models import Model, Params, State, create_model
from nfnets.models.residual import ResidualBlock

DEFAULT_MODELS = (
    "resnet50:conv_init=he",
    "nf_resnet50",
    "nf_resnet50:weight_standardization=False,conv_init=he,scaled_activation=False",
)
_LINEAR_SPAN = 30.0  # largest over smallest value of a linear axis
_COLORS = ("#08519c", "#d94801", "#238b45", "#6a51a3", "#525252", "#c51b8a")


@dataclasses.dataclass(frozen=True)
class SignalPropagation:
    """Statistics at initialisation for normally distributed images.

    Attributes:
      squared_mean: float [B + 1], mean over channels of their squared means; the first
        block's input, then the blocks' outputs.
      variance: float [B + 1], mean over channels of their variances, likewise.
      branch_variance: float [B], the same of the residual branches, before alpha and gain.
      predicted_variance: float [B] of the blocks' inputs, by which the design divides them;
        None where it does not.
    """

    squared_mean: np.ndarray
    variance: np.ndarray
    branch_variance: np.ndarray
    predicted_variance: np.ndarray | None


def measure(
    model: Model,
    *,
    image_size: int = 128,
    batch_size: int = 16,
    seed: int = 0,
    skip_gain: float = 1.0,
) -> SignalPropagation:
    """Measures a freshly initialised network in training mode.

    Args:
      model: without dropout and stochastic depth.
      image_size: side of the images, pixels.
      batch_size: number of images, of independent unit normal values.
      seed: of weights and images.
      skip_gain: value of the branches' learnt gains, which start at 0: as they are, the
        branches of many networks would add nothing.
    """
    model = dataclasses.replace(model, outline=False)  # look into the blocks
    weights_key, images_key = jax.random.split(jax.random.key(seed))
    images = jax.random.normal(images_key, (batch_size, image_size, image_size, 3))
    params, state = model.init(weights_key, images)
    for arrays in params.values():
        if "skip_gain" in arrays:
            arrays["skip_gain"] = jnp.full((), skip_gain)
    predicted = []

    def run(params: Params, state: State, images: jax.Array) -> dict[str, jax.Array]:
        found: dict[str, list[jax.Array]] = {"inputs": [], "branch": [], "outputs": []}

        def observe(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = next_call(*args, **kwargs)
            if isinstance(context.module, ResidualBlock):
                if context.method_name == "branch":
                    hidden, scale = result
                    found["branch"].append(_channel_statistics(hidden * scale))
                elif context.method_name == "__call__":
                    found["inputs"].append(_channel_statistics(args[0]))
                    found["outputs"].append(_channel_statistics(result))
                    predicted.append(context.module.expected_std**2)
            return result

        with hk.intercept_methods(observe):
            model.apply(params, state, None, images, is_training=True)
        states = found["inputs"][:1] + found["outputs"]
        return {"states": jnp.stack(states), "branch": jnp.stack(found["branch"])}

    found = jax.jit(run)(params, state, images)
    return SignalPropagation(
        squared_mean=np.asarray(found["states"][:, 0]),
        variance=np.asarray(found["states"][:, 1]),
        branch_variance=np.asarray(found["branch"][:, 1]),
        predicted_variance=(
            np.asarray(predicted) if model.spec.block.scale_inputs else None
        ),
    )


def _channel_statistics(values: jax.Array) -> jax.Array:
    """Mean over C of [squared mean, variance] of [N, H, W, C]."""
    values = values.astype(jnp.float32)
    mean = jnp.mean(values, axis=(0, 1, 2))
    variance = jnp.var(values, axis=(0, 1, 2))
    return jnp.stack([jnp.mean(mean**2), jnp.mean(variance)])


def plot(results: Mapping[str, SignalPropagation], path: str | pathlib.Path) -> None:
    """Draws several networks' signal propagation into one picture.

    Args:
      results: label -> statistics.
      path: of the picture, .png.
    """
    height = 4.0 + 0.2 * len(results)  # with the legend
    figure = Figure(figsize=(13, height), layout="constrained")
    axes = figure.subplots(1, 3)
    titles = (
        "Average channel squared mean",
        "Average channel variance",
        "Residual branch variance",
    )
    for number, (label, result) in enumerate(results.items()):
        color = _COLORS[number % len(_COLORS)]
        style = {"color": color, "marker": "o", "markersize": 3.5, "linewidth": 1.3}
        block = np.arange(len(result.variance))
        axes[0].plot(block, result.squared_mean, label=label, **style)
        axes[1].plot(block, result.variance, **style)
        axes[2].plot(block[1:], result.branch_variance, **style)
        if result.predicted_variance is not None:
            predicted = result.predicted_variance
            axes[1].plot(block[:-1], predicted, color="black", linestyle="--", zorder=3)
    for place, title in zip(axes, titles, strict=True):
        place.set_title(title)
        place.set_xlabel("block (0: what enters the first)")
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        _choose_scale(place)
        place.grid(alpha=0.3)
    axes[1].plot([], [], color="black", linestyle="--", label="predicted, beta squared")
    axes[1].legend()
    figure.suptitle("Signal propagation at initialisation, unit normal images")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=1
    )
    figure.savefig(path, dpi=110)


def _choose_scale(axes: Axes) -> None:
    """Logarithmic where the curves span decades, otherwise linear from zero."""
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    positive = values[values > 0]
    if len(positive) and positive.max() > _LINEAR_SPAN * positive.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def parse_model(text: str) -> tuple[str, dict[str, Any]]:
    """Splits NAME:FIELD=VALUE,... into the name and the overrides.

    Values are Python literals; what is none is a string.

    Raises:
      ValueError: an item without an equals sign.
    """
    name, _, listed = text.partition(":")
    overrides = {}
    for item in filter(None, listed.split(",")):
        field, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"expected FIELD=VALUE after the colon, not {item!r}")
        try:
            overrides[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[field] = value
    return name, overrides


def _create(text: str) -> Model:
    """Creates the model NAME[:FIELD=VALUE,...] without what is random in training."""
    try:
        name, overrides = parse_model(text)
        return create_model(name, **{"drop_rate": 0.0, "stochdepth_rate": 0.0} | overrides)
    except (TypeError, ValueError) as error:
        raise UserError(f"{text}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and draws the models of the command line."""
    parser = command.Parser(
        "nfnets.analysis.signal_propagation",
        "Signal propagation plot of freshly initialised networks.",
    )
    parser.add_argument(
        "models", nargs="*", metavar="NAME[:FIELD=VALUE,...]", default=DEFAULT_MODELS
    )
    parser.add_argument("--out", default="spp.png", help="picture to write")
    parser.add_argument("--image_size", type=positive_int, default=128, help="pixels")
    parser.add_argument("--batch", type=positive_int, default=16, help="images")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--skip_gain", type=float, default=1.0, help="of all branches")
    options = parser.parse_args(arguments)
    models = {text: _create(text) for text in options.models}
    results = {}
    for label, model in models.items():
        results[label] = measure(
            model,
            image_size=options.image_size,
            batch_size=options.batch,
            seed=options.seed,
            skip_gain=options.skip_gain,
        )
        last = results[label].variance[-1]
        print(f"{label}: variance {last:.3g} after {sum(model.spec.depths)} blocks")
    try:
        plot(results, options.out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write --out={options.out}: {error}") from None
    print(options.out)


if __name__ == "__main__":
    command.run(main)
