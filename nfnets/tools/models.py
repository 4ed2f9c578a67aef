"""Lists the models.

    nfnets models
    nfnets models 'nfnet_f*'

prints name, number of residual blocks, training and test image size, and the published
ImageNet accuracy: the paper's, or timm's of its own networks. `nfnets summary` counts
parameters and multiply-adds.
"""

from collections.abc import Sequence
import fnmatch

from nfnets import cli
from nfnets.errors import UserError
from nfnets.models.variants import get_spec, list_models


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the models that match the command line's pattern."""
    parser = cli.Parser("models", "List the models.")
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'nfnet_f*'")
    pattern = parser.parse_args(arguments).pattern
    names = fnmatch.filter(list_models(), pattern)
    if not names:
        raise UserError(f"no model matches {pattern!r}")
    print(f"{'model':<20}{'blocks':>8}{'train px':>10}{'test px':>10}{'top-1 %':>10}")
    for name in names:
        spec = get_spec(name)
        recipe = spec.recipe
        top1 = "-" if recipe.top1 is None else f"{recipe.top1:.1f}"
        print(
            f"{name:<20}{sum(spec.depths):>8}{recipe.train_size:>10}"
            f"{recipe.test_size:>10}{top1:>10}"
        )
