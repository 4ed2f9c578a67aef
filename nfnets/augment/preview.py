"""A contact sheet of what the model is trained on: each image beside its augmentation.

    python -m nfnets.augment.preview --config=configs/digits.py --out=preview.png

draws the first images of a training step, exactly as that step sees them. This is a
program on top of the package: training never imports it, and OpenCV and the rest of the
project are imported only when it runs.

Axis letters: N images, H height, W width, K classes.
"""

from collections.abc import Sequence
import pathlib

from absl import flags
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from nfnets.augment.pipeline import augment
from nfnets.errors import UserError
from nfnets.training import cli

_EXAMPLES = 48
_COLUMNS = 6
_MIN_TILE = 128  # side below which captions would not fit, pixels
_CAPTION_HEIGHT = 16
_GAP = 6
_CHARACTER_WIDTH = 7
_BACKGROUND, _INK = 255, 0


def contact_sheet(
    originals: np.ndarray,
    augmented: np.ndarray,
    captions: Sequence[str],
    columns: int = _COLUMNS,
) -> np.ndarray:
    """Draws each original beside its augmented image, with its caption below.

    Args:
      originals: uint8 [N, H, W, 3].
      augmented: [N, H, W, 3] in [0, 255].
      captions: N lines of text; what does not fit is cut off.
      columns: cells in a row.

    Returns:
      uint8 [sheet height, sheet width, 3]. Small images are enlarged by a whole factor.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    import cv2

    if originals.shape != augmented.shape or len(captions) != len(originals):
        raise ValueError(
            "expected as many captions and augmented images as originals; got "
            f"{len(captions)}, {augmented.shape} and {originals.shape}"
        )
    factor = -(-_MIN_TILE // originals.shape[2])
    pairs = np.concatenate([originals, np.asarray(augmented).astype(np.uint8)], axis=2)
    pairs = pairs.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = pairs.shape
    rows = -(-count // columns)
    cell_height, cell_width = height + _CAPTION_HEIGHT + _GAP, width + _GAP
    shape = (rows * cell_height + _GAP, columns * cell_width + _GAP, 3)
    sheet = np.full(shape, _BACKGROUND, np.uint8)
    for i, (pair, caption) in enumerate(zip(pairs, captions, strict=True)):
        top = _GAP + i // columns * cell_height
        left = _GAP + i % columns * cell_width
        sheet[top : top + height, left : left + width] = pair
        cv2.putText(
            sheet,
            caption[: width // _CHARACTER_WIDTH],
            (left, top + height + _CAPTION_HEIGHT - 4),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.4,
            (_INK,) * 3,
            lineType=cv2.LINE_AA,
        )
    return sheet


def describe_labels(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Returns each image's classes with their weights, the largest first.

    Args:
      labels: float [N, K].
      class_names: of the K classes.

    Returns:
      N lines such as "tench 0.70, goldfish 0.30".
    """
    lines = []
    for row in labels:
        largest = np.argsort(-row, kind="stable")[:2]
        parts = [f"{class_names[k]} {row[k]:.2f}" for k in largest if row[k] > 0]
        lines.append(", ".join(parts))
    return lines


def draw_step(config: ml_collections.ConfigDict, step: int) -> np.ndarray:
    """Returns the sheet of the first images of a training step.

    Args:
      config: as loaded and overridden.
      step: number of the training step, from 0.

    Returns:
      uint8 [sheet height, sheet width, 3].

    Raises:
      UserError: a mistake in the config, or data that cannot be read.
    """
    from nfnets.data import train_batches
    from nfnets.training import setup
    from nfnets.training.config import augment_options, resolve
    from nfnets.training.step import step_keys

    dataset = setup.open_config_dataset(config, None)
    config = resolve(
        config, num_train=len(dataset.train), num_classes=dataset.num_classes
    )
    options = augment_options(config)
    batches = train_batches(
        dataset.train,
        seed=config.seed,
        batch_size=config.data.batch_size,
        crop=setup.crop_options(config),
        start_step=step,
        threads=config.data.threads,
        prefetch=1,
        max_bad_records=config.data.max_bad_records,
    )
    with batches:
        batch = next(batches)
    # One device here; a part of the batch is augmented as it is within the whole.
    count = min(_EXAMPLES, config.data.batch_size)
    originals, classes, index = (part[0, :count] for part in batch[:3])
    augment_key, _ = step_keys(config.seed, step)
    labels = jax.nn.one_hot(classes, config.model.num_classes)
    images, labels = jax.jit(augment, static_argnames="options")(
        augment_key, jnp.asarray(originals), labels, jnp.asarray(index), options=options
    )
    captions = describe_labels(np.asarray(labels), dataset.class_names)
    return contact_sheet(originals, np.asarray(images), captions)


def main() -> None:
    """Draws the sheet with the command line's flags."""
    import cv2

    if _STEP.value < 0:
        raise UserError(f"--step={_STEP.value} must be 0 or more")
    sheet = draw_step(_CONFIG.value, _STEP.value)
    path = pathlib.Path(_OUT.value)
    try:
        written = cv2.imwrite(str(path), sheet[:, :, ::-1])
    except cv2.error:
        written = False
    if not written:
        raise UserError(
            f"cannot write --out={path}: the folder must exist and the name end in .png "
            "or .jpg"
        )
    print(f"{path}: {sheet.shape[1]} x {sheet.shape[0]} pixels")


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _OUT = flags.DEFINE_string("out", "preview.png", "Image file to write.")
    _STEP = flags.DEFINE_integer("step", 0, "Training step to show.")
    cli.run(main)
