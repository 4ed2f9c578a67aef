"""The table of models: sizes and costs."""

from collections.abc import Iterable, Sequence
import dataclasses

from nfnets.analysis.memory import training_step_cost
from nfnets.models import Model, count_parameters
from nfnets.models.counting import layer_calls, parameter_shapes


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """One model of the table.

    Attributes:
      name: as `create_model` takes it, and what is rematerialised.
      parameters: number of scalars.
      train_size: side of the training crops, pixels.
      train_multiply_adds: of one image of that size, forward.
      test_size: side of the evaluation images, pixels.
      test_multiply_adds: likewise.
      activations: elements of all convolutions' outputs, one image of the test size.
      step_bytes: memory of a training step; None where it was not asked for.
      step_seconds: duration of a training step; None where it was not asked for.
      top1: ImageNet accuracy that the paper reports, percent; None where it gives none.
    """

    name: str
    parameters: int
    train_size: int
    train_multiply_adds: int
    test_size: int
    test_multiply_adds: int
    activations: int
    step_bytes: int | None
    step_seconds: float | None
    top1: float | None


def describe(
    model: Model, batch_size: int | None = None, *, run: bool = False
) -> ModelRow:
    """Counts one model's sizes and costs.

    Args:
      model: from `create_model`.
      batch_size: of the training step whose memory is wanted, which takes compiling it;
        None: leave it out.
      run: measure that step's time, too.
    """
    recipe = model.spec.recipe
    cost = None
    if batch_size is not None:
        cost = training_step_cost(
            model, image_size=recipe.train_size, batch_size=batch_size, run=run
        )
    calls = {
        size: layer_calls(model, size) for size in {recipe.train_size, recipe.test_size}
    }
    multiply_adds = {size: sum(c.multiply_adds for c in calls[size]) for size in calls}
    return ModelRow(
        name=model.name + ("" if model.remat == "none" else f" ({model.remat})"),
        parameters=count_parameters(parameter_shapes(model)),
        train_size=recipe.train_size,
        train_multiply_adds=multiply_adds[recipe.train_size],
        test_size=recipe.test_size,
        test_multiply_adds=multiply_adds[recipe.test_size],
        activations=sum(c.outputs for c in calls[recipe.test_size] if c.is_conv),
        step_bytes=cost and cost.bytes,
        step_seconds=cost and cost.seconds,
        top1=recipe.top1,
    )


_COLUMNS = (
    ("model", 18),
    ("params M", 9),
    ("train px", 9),
    ("madds B", 9),
    ("test px", 8),
    ("madds B", 9),
    ("activ. M", 9),
    ("step GiB", 9),
    ("step s", 8),
    ("top-1 %", 8),
)


def format_table(rows: Iterable[ModelRow]) -> Iterable[str]:
    """Yields the lines of the table, each as soon as its row is there."""
    yield _line([title for title, _ in _COLUMNS])
    for row in rows:
        memory = "-" if row.step_bytes is None else f"{row.step_bytes / 2**30:.2f}"
        yield _line([
            row.name,
            f"{row.parameters / 1e6:.1f}",
            str(row.train_size),
            f"{row.train_multiply_adds / 1e9:.2f}",
            str(row.test_size),
            f"{row.test_multiply_adds / 1e9:.2f}",
            f"{row.activations / 1e6:.2f}",
            memory,
            "-" if row.step_seconds is None else f"{row.step_seconds:.2f}",
            "-" if row.top1 is None else f"{row.top1:.1f}",
        ])


def _line(cells: Sequence[str]) -> str:
    widths = [width for _, width in _COLUMNS]
    first, *others = [
        cell.rjust(width) if position else cell.ljust(width)
        for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return first + "".join(others)
