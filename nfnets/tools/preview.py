"""Draws augmented training images beside their originals.

    nfnets preview --config=configs/digits.py --out=preview.png

shows the first images of a training step, exactly as that step sees them.

Axis letters: N images, H height, W width, K classes.
"""

from collections.abc import Sequence

import ml_collections
import numpy as np

from nfnets import cli
from nfnets.errors import UserError

_EXAMPLES = 48
_COLUMNS = 6
_MIN_TILE = 128  # smallest side at which captions fit, pixels
_CAPTION_HEIGHT = 16
_GAP = 6
_CHARACTER_WIDTH = 7
_BACKGROUND, _INK = 255, 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the sheet of the config that the command line names."""
    parser = cli.ConfigParser("preview", "Draw augmented training images.")
    parser.add_argument("--out", default="preview.png", help="image file to write")
    parser.add_argument("--step", type=int, default=0, help="training step, from 0")
    options, config = parser.parse(arguments)
    if options.step < 0:
        raise UserError(f"--step={options.step} must be at least 0")
    # Imported only now: mistakes in the command line are reported at once.
    import cv2

    sheet = draw_step(config, options.step)
    try:
        is_written = cv2.imwrite(options.out, sheet[:, :, ::-1])
    except cv2.error:
        is_written = False
    if not is_written:
        raise UserError(
            f"cannot write --out={options.out}; the folder must exist and the name end in "
            ".png or .jpg"
        )
    print(f"{options.out}: {sheet.shape[1]} x {sheet.shape[0]} pixels")


def draw_step(config: ml_collections.ConfigDict, step: int) -> np.ndarray:
    """Returns the sheet of the first images of a training step.

    Args:
      config: as loaded and overridden.
      step: number of the training step, from 0.

    Returns:
      uint8 [sheet height, sheet width, 3].

    Raises:
      UserError: the config is invalid, or the data cannot be read.
    """
    import jax
    import jax.numpy as jnp

    from nfnets.augment import augment
    from nfnets.training.config import resolve
    from nfnets.training.input_pipeline import open_config_dataset, train_batches
    from nfnets.training.step import step_keys

    dataset = open_config_dataset(config)
    resolved = resolve(
        config, num_train=len(dataset.train), num_classes=dataset.num_classes
    )
    with train_batches(resolved, dataset, first_batch=step) as batches:
        batch = next(batches)
    # Augmentation does not depend on how the batch is divided.
    count = min(_EXAMPLES, batch.images.shape[1])
    originals = batch.images[0, :count]
    labels = jax.nn.one_hot(batch.labels[0, :count], resolved.model.num_classes)
    index = jnp.asarray(batch.example_index[0, :count])
    augment_key, _ = step_keys(resolved.seed, step)
    images, labels = jax.jit(augment, static_argnames="options")(
        augment_key, jnp.asarray(originals), labels, index, options=resolved.augment
    )
    captions = describe_labels(np.asarray(labels), dataset.class_names)
    return contact_sheet(originals, np.asarray(images), captions)


def describe_labels(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Returns the two largest classes of each image with their weights.

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


def contact_sheet(
    originals: np.ndarray,
    augmented: np.ndarray,
    captions: Sequence[str],
    columns: int = _COLUMNS,
) -> np.ndarray:
    """Draws each original beside its augmented image, above its caption.

    Args:
      originals: uint8 [N, H, W, 3].
      augmented: [N, H, W, 3] in [0, 255].
      captions: N lines of text, truncated to the width of the images.
      columns: number of pairs in a row.

    Returns:
      uint8 [sheet height, sheet width, 3]. Small images are enlarged by an integer factor.

    Raises:
      UserError: the arguments differ in shape.
    """
    import cv2

    if originals.shape != augmented.shape or len(captions) != len(originals):
        raise UserError(
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
    for index, (pair, caption) in enumerate(zip(pairs, captions, strict=True)):
        row, column = divmod(index, columns)
        top, left = _GAP + row * cell_height, _GAP + column * cell_width
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
