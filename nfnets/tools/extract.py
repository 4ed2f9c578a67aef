"""Writes the weights of a run's checkpoint to a weights file.

    nfnets extract --workdir=runs/digits --average=ema --out=digits.safetensors

The file's metadata are the model, its classes and the run's evaluation preprocessing.
"""

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING

from nfnets import cli
from nfnets.errors import UserError

if TYPE_CHECKING:
    from nfnets.models import Params, State
    from nfnets.training.config import Config
    from nfnets.weights import WeightsInfo


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the file that the command line names."""
    parser = cli.Parser("extract", "Write the weights of a run to a file.")
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--out", required=True, help=".safetensors file to write")
    parser.add_argument(
        "--average", default="raw", help="moving average to take, such as ema"
    )
    parser.add_argument(
        "--step", type=step, help="checkpoint of the run, or best (default: the newest)"
    )
    options = parser.parse_args(arguments)
    # Imported only now: mistakes in the command line are reported at once.
    from nfnets.weights import save_weights

    params, state, info = extract(options.workdir, options.average, options.step)
    save_weights(options.out, params, state, info)
    print(f"{options.out}: {info.model}, {info.num_classes} classes, {info.source}")


def step(text: str) -> int | str:
    """Reads the number of a checkpoint or `best`, for `add_argument(type=...)`."""
    return text if text == "best" else int(text)


def extract(
    workdir: str, average: str = "raw", step: int | str | None = None
) -> "tuple[Params, State, WeightsInfo]":
    """Reads the weights of a run's checkpoint and their metadata.

    Args:
      workdir: folder of the run.
      average: one of the run's moving averages; `raw`: the weights themselves.
      step: of the checkpoint; "best": by eval/top1; None: the newest.

    Returns:
      (params, state, info).

    Raises:
      UserError: the run, checkpoint or average does not exist.
    """
    from nfnets.training.workdir import read_run

    run = read_run(workdir, step=step)
    if average not in run.weights:
        raise UserError(
            f"{workdir} has no average {average!r}; it has {', '.join(run.weights)}"
        )
    info = dataclasses.replace(
        describe_config(run.config),
        class_names=run.class_names,
        source=f"run {workdir}, step {run.step}, {average} weights, "
        f"data {run.config.data.source}",
    )
    return *run.weights[average], info


def describe_config(config: "Config") -> "WeightsInfo":
    """Returns the metadata that follow from a resolved config.

    For a model of one's own these are only its preprocessing and number of classes.
    """
    from nfnets.models import create_model
    from nfnets.models.spec import MEAN_RGB, STDDEV_RGB
    from nfnets.weights import WeightsInfo, describe_model

    if ":" in config.model.name:
        info = WeightsInfo(num_classes=config.model.num_classes)
    else:
        overrides = dict(config.model.overrides)
        model = create_model(config.model.name, config.model.num_classes, **overrides)
        if config.model.activation != model.spec.activation:
            overrides["activation"] = config.model.activation
        info = describe_model(model, overrides)
    return dataclasses.replace(
        info,
        image_size=config.eval.image_size,
        preprocessing=config.eval.preprocessing,
        apply_exif=config.data.apply_exif,
        crop_fraction=config.eval.crop_fraction,
        mean_rgb=config.data.mean_rgb or MEAN_RGB,
        stddev_rgb=config.data.stddev_rgb or STDDEV_RGB,
    )
