"""From a run to a weights file.

    python -m nfnets.weights.extract --workdir=runs/digits --average=ema --out=w.safetensors

The file says everything that prediction needs: the model, its classes and the evaluation's
image size and preprocessing, as the run's checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING

from nfnets import command
from nfnets.errors import UserError
from nfnets.models import create_model
from nfnets.weights.files import save_weights
from nfnets.weights.info import WeightsInfo, describe_model

if TYPE_CHECKING:
    import ml_collections

    from nfnets.models import Params, State


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the file that the command line asks for."""
    parser = command.Parser("nfnets.weights.extract", "From a run to a weights file.")
    parser.add_argument("--workdir", required=True, help="folder of a run of train.py")
    parser.add_argument("--out", required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--average", default="raw", help="such as ema; raw: the weights themselves"
    )
    parser.add_argument("--step", type=int, help="of the checkpoint; None: the newest")
    options = parser.parse_args(arguments)
    params, state, info = extract(options.workdir, options.average, options.step)
    save_weights(options.out, params, state, info)
    print(f"{options.out}: {info.model}, {info.num_classes} classes, {info.source}")


def extract(
    workdir: str, average: str = "raw", step: int | None = None
) -> tuple[Params, State, WeightsInfo]:
    """Reads the weights of a run's checkpoint and all that belongs to them.

    Args:
      workdir: of the run.
      average: one of the averages that the run keeps, or `raw`, the weights themselves.
      step: of the checkpoint; None: the newest.

    Returns:
      (params, state, info).

    Raises:
      UserError: no such run, checkpoint or average.
    """
    # These take seconds to import: only when it is known that they are needed.
    from nfnets.training.config import unflatten
    from nfnets.training.scoring import read_run

    run = read_run(workdir, step=step)
    if average not in run.weights:
        raise UserError(
            f"{workdir} keeps no average {average!r}; it has {', '.join(run.weights)}"
        )
    config = unflatten(run.provenance.config)
    info = dataclasses.replace(
        describe_config(config),
        class_names=run.provenance.class_names,
        source=f"run {workdir}, step {run.step}, {average} weights, "
        f"data {config.data.source}",
    )
    return *run.weights[average], info


def describe_config(config: ml_collections.ConfigDict) -> WeightsInfo:
    """Returns what a resolved config says about its weights."""
    # Runs from before that field have none.
    overrides = dict(config.model.get("overrides", {}))
    model = create_model(config.model.name, config.model.num_classes, **overrides)
    if config.model.activation != model.spec.activation:
        overrides["activation"] = config.model.activation
    return dataclasses.replace(
        describe_model(model, overrides),
        image_size=config.eval.image_size,
        preprocessing=config.eval.preprocessing,
    )


if __name__ == "__main__":
    command.run(main)
