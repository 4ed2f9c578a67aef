"""The table of models.

    python -m nfnets.summary nfnet_f0 resnet50 --batch=32

Parameters, multiply-adds of one image at training and at test size, elements of all
convolutions' outputs at test size, memory of a training step (XLA's plan for this
machine's kind of device, only with --batch: compiling takes up to minutes a model), and
the paper's ImageNet accuracy. Without names: all models, which takes minutes.
"""

import argparse
from collections.abc import Sequence

from nfnets.analysis.model_table import describe, format_table
from nfnets.models import create_model, list_models


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of the command line's models."""
    parser = argparse.ArgumentParser(
        prog="python -m nfnets.summary", description="Sizes and costs of the models."
    )
    parser.add_argument("models", nargs="*", metavar="NAME", help="default: all models")
    parser.add_argument("--batch", type=int, help="images of a step on one device")
    parser.add_argument(
        "--compute_dtype", default="float32", help="of that step's feature maps"
    )
    options = parser.parse_args(arguments)
    try:
        models = [
            create_model(name, compute_dtype=options.compute_dtype)
            for name in options.models or list_models()
        ]
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    if options.batch is not None and options.batch < 1:
        parser.error(f"--batch must be at least 1, not {options.batch}")
    for line in format_table(describe(model, options.batch) for model in models):
        print(line, flush=True)


if __name__ == "__main__":
    main()
