"""Lists the models.

    nfnets models
    nfnets models 'nfnet_f*'
    nfnets models --pretrained

prints name, number of residual blocks, training and test image size, and the published
ImageNet accuracy (the paper's, or timm's of its own networks); or the published weights
that can be loaded by name, with the accuracy of these files. `nfnets summary` counts
parameters and multiply-adds.
"""

from collections.abc import Sequence
import fnmatch

from nfnets import cli
from nfnets.errors import UserError
from nfnets.models.variants import get_spec, list_models
from nfnets.weights import hub


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the models that match the command line's pattern."""
    parser = cli.Parser("models", "List the models.")
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'nfnet_f*'")
    parser.add_argument(
        "--pretrained", action="store_true", help="list published weights instead"
    )
    options = parser.parse_args(arguments)
    pattern = options.pattern
    if options.pretrained:
        print_pretrained(pattern)
        return
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


def print_pretrained(pattern: str) -> None:
    """Prints the published weights of the models that match a pattern.

    Raises:
      UserError: there are none.
    """
    found = [known for known in hub.PRETRAINED if fnmatch.fnmatchcase(known.model, pattern)]
    if not found:
        raise UserError(f"no published weights match {pattern!r}")
    print(
        f"{'weights':<28}{'from':<10}{'params, M':>10}{'train px':>10}{'test px':>10}"
        f"{'top-1 %':>10}  repository"
    )
    for known in found:
        recipe = get_spec(known.model).recipe
        print(
            f"{known.model + '.' + known.tag:<28}{known.source:<10}{known.params:>10.1f}"
            f"{recipe.train_size:>10}{recipe.test_size:>10}{known.top1:>10.2f}"
            f"  hf://{known.repository}"
        )
