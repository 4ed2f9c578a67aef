"""Downloads and prepares a TFDS dataset in the format that this project reads.

    nfnets prepare imagenet2012 --data_dir=DIR --manual_dir=DIR_OF_THE_TARS

needs TensorFlow (`pip install tensorflow-cpu`), which nothing else does. A dataset that has
already been prepared as TFRecord files is converted, without TensorFlow.
"""

from collections.abc import Sequence
import importlib
import importlib.util

import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from nfnets import cli
from nfnets.data.sources.tfds import default_data_dir, find_prepared, has_readable_files
from nfnets.data.sources.tfrecords import convert_tfrecords
from nfnets.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the dataset that the command line names."""
    parser = cli.Parser("prepare", "Download and prepare a TFDS dataset.")
    parser.add_argument("dataset", help="NAME, NAME/CONFIG or NAME:VERSION, as in TFDS")
    parser.add_argument("--data_dir", help="folder of the datasets (default: that of TFDS)")
    parser.add_argument(
        "--manual_dir",
        help="folder of files that need a login (default: DATA_DIR/downloads/manual)",
    )
    options = parser.parse_args(arguments)
    print(f"prepared: {prepare(options.dataset, options.data_dir, options.manual_dir)}")


def prepare(
    dataset: str, data_dir: str | None = None, manual_dir: str | None = None
) -> str:
    """Prepares a dataset, unless that has been done.

    Args:
      dataset: `NAME`, `NAME/CONFIG`, either with `:VERSION`.
      data_dir: folder of the datasets; None: TFDS's default.
      manual_dir: folder of the files that TFDS cannot download; None:
        `data_dir`/downloads/manual.

    Returns:
      The folder of the prepared dataset.

    Raises:
      UserError: TensorFlow is missing, the dataset is unknown, or files are missing.
    """
    folder = find_prepared(dataset, data_dir)
    if folder is None:
        return _download(dataset, data_dir, manual_dir)
    builder = tfds.builder_from_directory(folder)
    if not has_readable_files(builder):
        convert_tfrecords(builder)
    return str(folder)


def _download(dataset: str, data_dir: str | None, manual_dir: str | None) -> str:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            "preparing a dataset needs TensorFlow (training does not); install it with: "
            "pip install tensorflow-cpu"
        )
    # Not by `import`: type checkers cannot find it.
    tensorflow = importlib.import_module("tensorflow")
    root = default_data_dir(data_dir)
    try:
        builder = tfds.builder(dataset, data_dir=root, file_format="array_record")
    except registered.DatasetNotFoundError as error:
        raise UserError(f"TFDS has no dataset {dataset!r}; see its catalog") from error
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir,
        # The copies on Google's servers are TFRecord files.
        try_download_gcs=False,
    )
    try:
        builder.download_and_prepare(download_config=config)
    except (AssertionError, OSError, tensorflow.errors.NotFoundError) as error:
        # TFDS raises the first for an empty manual_dir, the second without a network.
        text = " ".join(str(error).split())
        raise UserError(f"cannot prepare {dataset}: {text}") from error
    return str(builder.data_dir)
