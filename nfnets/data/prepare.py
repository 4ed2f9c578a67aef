"""Downloads and prepares a TFDS dataset in the format that this project reads.

    python -m nfnets.data.prepare imagenet2012 --data_dir=DIR --manual_dir=DIR_OF_THE_TARS

This is the one place that needs TensorFlow: `pip install tensorflow-cpu`. A dataset that is
already there as TFRecord files is converted instead, which needs no TensorFlow.
"""

from collections.abc import Sequence
import importlib.util

import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from nfnets import command
from nfnets.data import tfds_source
from nfnets.data.convert import convert_tfrecords
from nfnets.errors import UserError


def prepare(
    dataset: str, data_dir: str | None = None, manual_dir: str | None = None
) -> str:
    """Prepares a dataset; does nothing if it is there already.

    Args:
        dataset: `NAME`, `NAME/CONFIG`, either with `:VERSION`.
        data_dir: where to put it; None: where TFDS keeps its datasets.
        manual_dir: where the files are that TFDS cannot download; None:
            `data_dir`/downloads/manual.

    Returns:
        The folder of the prepared dataset.

    Raises:
        UserError: TensorFlow is missing, there is no such dataset, files are missing.
    """
    folder = tfds_source.find_prepared(dataset, data_dir)
    if folder is None:
        return _download(dataset, data_dir, manual_dir)
    builder = tfds.builder_from_directory(folder)
    if not tfds_source.has_readable_files(builder):
        convert_tfrecords(builder)
    return str(folder)


def _download(dataset: str, data_dir: str | None, manual_dir: str | None) -> str:
    """Lets TFDS do all its work."""
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            "preparing a dataset needs TensorFlow (training does not); install it with: "
            "pip install tensorflow-cpu"
        )
    import tensorflow

    root = tfds_source.default_data_dir(data_dir)
    try:
        builder = tfds.builder(dataset, data_dir=root, file_format="array_record")
    except registered.DatasetNotFoundError as error:
        raise UserError(f"TFDS has no dataset {dataset!r}; see its catalog") from error
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir,
        # Copies on Google's servers are TFRecord files.
        try_download_gcs=False,
    )
    try:
        builder.download_and_prepare(download_config=config)
    except (AssertionError, OSError, tensorflow.errors.NotFoundError) as error:
        # The first is how TFDS says that manual_dir is empty; the second, no network.
        text = " ".join(str(error).split())
        raise UserError(f"cannot prepare {dataset}: {text}") from error
    return str(builder.data_dir)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = command.Parser(
        "nfnets.data.prepare", "Prepares a TFDS dataset in the format that nfnets reads."
    )
    parser.add_argument("dataset", help="NAME, NAME/CONFIG or NAME:VERSION, as in TFDS")
    parser.add_argument("--data_dir", help="where to put it (default: TFDS's own)")
    parser.add_argument("--manual_dir", help="where the files are that need a login")
    options = parser.parse_args(arguments)
    folder = prepare(options.dataset, options.data_dir, options.manual_dir)
    print(f"prepared: {folder}")


if __name__ == "__main__":
    command.run(main)
