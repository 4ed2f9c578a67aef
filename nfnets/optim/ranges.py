"""Range checks of hyperparameters."""

from typing import Annotated

from nfnets import schema


def check_range(interval: str, **values: object) -> None:
    """Checks hyperparameters that are plain Python numbers.

    Arrays, tracers and schedules pass unchecked, because they have no value yet, for
    instance under `optax.inject_hyperparams`. So does None.

    Example:

        check_range("(0, inf)", clipping=clipping, eps=eps)

    Args:
      interval: such as "[0, 1)".
      **values: name -> value.

    Raises:
      UserError: a number lies outside `interval`.
    """
    for name, value in values.items():
        if isinstance(value, int | float):
            schema.check(Annotated[float, interval], value, name)
