"""The table of models.

    python -m nfnets.summary nfnet_f0 resnet50 --batch=32

Parameters, multiply-adds of one image at training and at test size, elements of all
convolutions' outputs at test size, memory of a training step (XLA's plan for this
machine's kind of device, only with --batch: compiling takes up to minutes a model), and
the paper's ImageNet accuracy. Without names: all models, which takes minutes.

    python -m nfnets.summary nfnet_f3 --batch=4 --remat none block stage --run

compares what rematerialisation saves and costs: with --run the step is also timed.
"""

from collections.abc import Sequence

from nfnets import command
from nfnets.analysis.model_table import describe, format_table
from nfnets.command import positive_int
from nfnets.errors import UserError
from nfnets.models import REMAT, create_model, list_models


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of the command line's models."""
    parser = command.Parser("nfnets.summary", "Sizes and costs of the models.")
    parser.add_argument("models", nargs="*", metavar="NAME", help="none: all models")
    parser.add_argument("--batch", type=positive_int, help="images of a step on one device")
    parser.add_argument(
        "--compute_dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of that step's feature maps",
    )
    parser.add_argument(
        "--remat",
        nargs="+",
        choices=REMAT,
        default=["none"],
        help="what that step computes again in place of keeping it; several: a row each",
    )
    parser.add_argument("--run", action="store_true", help="time that step, too")
    options = parser.parse_args(arguments)
    if options.run and options.batch is None:
        raise UserError("--run needs --batch=N, the images of the step")
    try:
        models = [
            create_model(
                name, compute_dtype=options.compute_dtype, remat=remat, outline=True
            )
            for name in options.models or list_models()
            for remat in options.remat
        ]
    except ValueError as error:
        raise UserError(str(error)) from None
    for line in format_table(
        describe(model, options.batch, run=options.run) for model in models
    ):
        print(line, flush=True)


if __name__ == "__main__":
    command.run(main)
