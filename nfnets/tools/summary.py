"""Prints sizes and costs of models.

    nfnets summary nfnet_f0 resnet50 --batch=32

prints parameters, multiply-adds of one image at training and at test size, elements of all
convolutions' outputs at test size and, with --batch, the memory of a training step as
planned by XLA for this machine (which takes up to minutes per model), and the published
ImageNet accuracy. Without names, all models are listed.

    nfnets summary nfnet_f3 --batch=4 --remat none block stage --run

compares the memory that rematerialization saves and, with --run, the time that it costs.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nfnets import cli
from nfnets.errors import UserError
from nfnets.models import (
    REMAT,
    Model,
    Params,
    State,
    count_parameters,
    create_model,
    list_models,
)
from nfnets.models.counting import layer_calls
from nfnets.optim import create_optimizer

_TIMED_STEPS = 3
_COLUMNS = (
    ("model", 20),
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


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """Sizes and costs of a model.

    Attributes:
      name: of the model, and its rematerialization.
      parameters: number of scalars.
      train_size: side of the training crops, pixels.
      train_multiply_adds: of the forward pass of one training image.
      test_size: side of the evaluation images, pixels.
      test_multiply_adds: of the forward pass of one evaluation image.
      activations: elements of all convolutions' outputs, one evaluation image.
      step_bytes: memory of a training step; None if not measured.
      step_seconds: duration of a training step; None if not measured.
      top1: published ImageNet accuracy, percent; None if there is none.
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of the models that the command line names."""
    parser = cli.Parser("summary", "Print sizes and costs of models.")
    parser.add_argument("models", nargs="*", metavar="NAME", help="none: all models")
    parser.add_argument("--batch", type=cli.positive_int, help="images of a training step")
    parser.add_argument(
        "--compute_dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="dtype of the training step's feature maps",
    )
    parser.add_argument(
        "--remat",
        nargs="+",
        choices=REMAT,
        default=["none"],
        help="rematerialization of the training step; a row for each",
    )
    parser.add_argument("--run", action="store_true", help="time the training step, too")
    options = parser.parse_args(arguments)
    if options.run and options.batch is None:
        raise UserError("--run needs --batch=N, the images of the step")
    models = [
        create_model(name, compute_dtype=options.compute_dtype, remat=remat)
        for name in options.models or list_models()
        for remat in options.remat
    ]
    summaries = (summarize(model, options.batch, run=options.run) for model in models)
    for line in format_table(summaries):
        print(line, flush=True)


def summarize(
    model: Model, batch_size: int | None = None, *, run: bool = False
) -> ModelSummary:
    """Counts the sizes and costs of a model.

    Args:
      model: from `create_model`.
      batch_size: images of the training step that is measured, which takes compiling it;
        None: no training step.
      run: measure the time of that step, too.
    """
    recipe = model.spec.recipe
    step_bytes = step_seconds = None
    if batch_size is not None:
        step_bytes, step_seconds = measure_step(
            model, recipe.train_size, batch_size, run=run
        )
    train_calls = layer_calls(model, recipe.train_size)
    test_calls = layer_calls(model, recipe.test_size)
    return ModelSummary(
        name=model.name + ("" if model.remat == "none" else f" ({model.remat})"),
        parameters=count_parameters(model.shapes()[0]),
        train_size=recipe.train_size,
        train_multiply_adds=sum(call.multiply_adds for call in train_calls),
        test_size=recipe.test_size,
        test_multiply_adds=sum(call.multiply_adds for call in test_calls),
        activations=sum(call.outputs for call in test_calls if call.is_conv),
        step_bytes=step_bytes,
        step_seconds=step_seconds,
        top1=recipe.top1,
    )


def measure_step(
    model: Model, image_size: int, batch_size: int, *, run: bool = False
) -> tuple[int, float | None]:
    """Compiles a training step on one device and, if wanted, runs it a few times.

    The step is a forward and a backward pass and the published optimizer's update.

    Args:
      model: from `create_model`.
      image_size: side of the images, pixels.
      batch_size: number of images.
      run: measure the time, too.

    Returns:
      (bytes, seconds): bytes of arguments, results and temporary arrays, where parameters
      and momentum count once because they are updated in place; seconds of the fastest
      of several steps, None without `run`.
    """
    optimizer = create_optimizer(0.1)

    def loss_fn(
        params: Params, state: State, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, State]:
        outputs, state = model.apply(params, state, key, images, is_training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], labels)
        return jnp.mean(losses), state

    def step(variables: Any, key: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        params, state, opt_state = variables
        grads, state = jax.grad(loss_fn, has_aux=True)(params, state, key, images, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state

    params, state = model.shapes()
    variables = (params, state, jax.eval_shape(optimizer.init, params))
    key = jax.random.key(0)
    images = jnp.zeros((batch_size, image_size, image_size, 3))
    labels = jnp.zeros(batch_size, jnp.int32)
    lowered = jax.jit(step, donate_argnums=0).lower(variables, key, images, labels)
    compiled = lowered.compile()
    plan: Any = compiled.memory_analysis()
    planned = (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )
    if not run:
        return planned, None
    params, state = model.init(key, images)
    variables = (params, state, optimizer.init(params))
    seconds = []
    for _ in range(_TIMED_STEPS):
        start = time.monotonic()
        variables = jax.block_until_ready(compiled(variables, key, images, labels))
        seconds.append(time.monotonic() - start)
    return planned, min(seconds)


def format_table(summaries: Iterable[ModelSummary]) -> Iterator[str]:
    """Yields the lines of the table, each as soon as its row is known."""
    yield _format_line([title for title, _ in _COLUMNS])
    for row in summaries:
        yield _format_line(
            [
                row.name,
                f"{row.parameters / 1e6:.1f}",
                str(row.train_size),
                f"{row.train_multiply_adds / 1e9:.2f}",
                str(row.test_size),
                f"{row.test_multiply_adds / 1e9:.2f}",
                f"{row.activations / 1e6:.2f}",
                "-" if row.step_bytes is None else f"{row.step_bytes / 2**30:.2f}",
                "-" if row.step_seconds is None else f"{row.step_seconds:.2f}",
                "-" if row.top1 is None else f"{row.top1:.1f}",
            ]
        )


def _format_line(cells: Sequence[str]) -> str:
    (first, width), *others = zip(cells, (width for _, width in _COLUMNS), strict=True)
    return first.ljust(width) + "".join(cell.rjust(width) for cell, width in others)
