"""Classifies image files.

    nfnets predict --model=nfnet_f0 cat.jpg
    nfnets predict --weights=f0.safetensors cat.jpg photos/ --top=3 --format=csv
    nfnets predict --workdir=runs/mine photos/

Model, preprocessing and class names are those of the weights file or run. Unreadable files
are reported on stderr and skipped; the exit code is then 1, or 2 if none could be read. In
file names that are not UTF-8, bytes are replaced by backslash escapes; --format=json keeps
them as Python's surrogate escapes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import csv
import dataclasses
import functools
import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any, TextIO

from absl import logging
import numpy as np

from nfnets import cli
from nfnets.data.images import EVAL_METHODS, decode, preprocess_eval
from nfnets.data.sources import listing
from nfnets.errors import UserError
from nfnets.tools.extract import extract, step

if TYPE_CHECKING:
    import jax

    from nfnets.inference import Classifier

_MAX_PATH_WIDTH = 60  # of the table's first column, characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most likely classes of one image, in descending order.

    Attributes:
      path: of the file.
      classes: their numbers.
      names: their names.
      probabilities: in [0, 1].
    """

    path: str
    classes: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Classifies the files that the command line names; returns the exit code."""
    parser = cli.Parser("predict", "Classify image files.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file or folder")
    cli.add_weights_option(parser)
    parser.add_argument("--workdir", help="folder of a run, in place of --weights")
    parser.add_argument(
        "--average", default="raw", help="moving average of the run to take, such as ema"
    )
    parser.add_argument(
        "--step", type=step, help="checkpoint of the run, or best (default: the newest)"
    )
    parser.add_argument("--top", type=cli.positive_int, default=5, help="classes per image")
    parser.add_argument(
        "--format", choices=tuple(_WRITERS), default="table", help="of the output"
    )
    parser.add_argument("--batch_size", type=cli.positive_int, default=32, help="images")
    options = parser.parse_args(arguments)
    if (options.weights is None) == (options.workdir is None):
        raise UserError("give either --weights=FILE or --workdir=DIR")
    cli.escape_file_names()
    paths = find_images(options.images, lambda line: print(line, file=sys.stderr))
    # Imported only now: mistakes in the command line are reported at once.
    from nfnets.cpu import memory
    from nfnets.inference import load_classifier, make_classifier
    from nfnets.training.distributed import prepare_process
    from nfnets.weights import model_of

    prepare_process()
    if options.weights is not None:
        classifier = load_classifier(options.weights)
    else:
        params, state, info = extract(options.workdir, options.average, options.step)
        model = model_of(info, options.workdir)
        classifier = make_classifier(model, params, state, info)
    memory.keep_memory()
    skipped = []

    def skip(path: str, reason: str) -> None:
        skipped.append(path)
        print(f"skipped {path}: {reason}", file=sys.stderr)

    found = predict(
        classifier, paths, top=options.top, batch_size=options.batch_size, on_error=skip
    )
    width = min(_MAX_PATH_WIDTH, max(map(len, paths)))
    _WRITERS[options.format](found, sys.stdout, width)
    return 0 if not skipped else 1 if len(skipped) < len(paths) else 2


def find_images(
    names: Iterable[str], on_left_out: Callable[[str], object] = logging.warning
) -> list[str]:
    """Returns files as they are, and folders replaced by the image files at any depth.

    Args:
      names: of files and folders.
      on_left_out: receives one line for each folder that has other files.

    Raises:
      UserError: a folder has no images.
    """
    paths: list[str] = []
    for name in names:
        if not os.path.isdir(name):
            paths.append(name)
            continue
        try:
            inside, left_out = listing.find_images(name)
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        if left_out:
            on_left_out(listing.describe_left_out(name, left_out))
        if not inside:
            raise UserError(f"the folder {name} has no image files")
        paths += [os.path.join(name, path) for path in inside]
    return paths


def predict(
    classifier: "Classifier",
    paths: Sequence[str],
    *,
    top: int = 5,
    batch_size: int = 32,
    on_error: Callable[[str, str], None],
) -> Iterator[Prediction]:
    """Classifies image files in order, reading one batch while the device runs another.

    Args:
      classifier: from `nfnets.inference.load_classifier`.
      paths: of the files.
      top: number of classes per image, at most all.
      batch_size: number of images; the last batch is padded, so that only one shape is
        compiled.
      on_error: called with path and reason for each file that cannot be read.

    Raises:
      UserError: the preprocessing of the weights is unknown.
    """
    info = classifier.info
    size, method = info.image_size, info.preprocessing
    if size is None or method is None or method not in EVAL_METHODS:
        raise UserError(
            f"the weights need the unknown preprocessing {method!r}; known: "
            f"{', '.join(EVAL_METHODS)}"
        )
    load = functools.partial(
        _load,
        size=size,
        method=method,
        crop_fraction=info.crop_fraction,
        apply_exif=info.apply_exif is not False,
    )
    batch_size = min(batch_size, max(1, len(paths)))
    compiled: Callable[[Any], Any] = classifier.compile()
    pending: tuple[list[str], jax.Array] | None = None
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), batch_size):
            chunk = paths[start : start + batch_size]
            good: list[str] = []
            batch = np.zeros((batch_size, size, size, 3), np.uint8)
            images = pool.map(load, chunk)
            for path, image in zip(chunk, images, strict=True):
                if isinstance(image, str):
                    on_error(path, image)
                else:
                    batch[len(good)] = image
                    good.append(path)
            started = (good, compiled(batch)) if good else None
            if pending:
                yield from _finish(classifier, *pending, top)
            pending = started
        if pending:
            yield from _finish(classifier, *pending, top)


def _load(
    path: str, size: int, method: str, crop_fraction: float | None, apply_exif: bool
) -> np.ndarray | str:
    """Returns a preprocessed image, or the reason why there is none."""
    try:
        image = decode(pathlib.Path(path).read_bytes(), apply_exif=apply_exif)
        return preprocess_eval(image, size, method, crop_fraction)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return " ".join(str(error).split())


def _finish(
    classifier: "Classifier", paths: Sequence[str], probabilities: "jax.Array", top: int
) -> Iterator[Prediction]:
    for path, row in zip(paths, np.asarray(probabilities), strict=False):
        best = np.argsort(-row, kind="stable")[:top].tolist()
        yield Prediction(
            path=path,
            classes=tuple(best),
            names=tuple(classifier.class_name(index) for index in best),
            probabilities=tuple(row[best].tolist()),
        )


def _write_table(predictions: Iterable[Prediction], out: TextIO, width: int) -> None:
    out.write(f"{'image':<{width}}  {'probability':>11}  class\n")
    for prediction in predictions:
        path = prediction.path
        for _, name, probability in _rows(prediction):
            out.write(f"{path:<{width}}  {probability:>11.2%}  {name}\n")
            path = ""
        out.flush()


def _write_csv(predictions: Iterable[Prediction], out: TextIO, _: int) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "name", "probability"))
    for prediction in predictions:
        for rank, (index, name, probability) in enumerate(_rows(prediction), start=1):
            writer.writerow((prediction.path, rank, index, name, f"{probability:.6f}"))


def _write_json(predictions: Iterable[Prediction], out: TextIO, _: int) -> None:
    separator = "["
    for prediction in predictions:
        entry = {
            "image": prediction.path,
            "predictions": [
                {"class": index, "name": name, "probability": probability}
                for index, name, probability in _rows(prediction)
            ],
        }
        out.write(f"{separator}\n{json.dumps(entry)}")
        separator = ","
    out.write("[]\n" if separator == "[" else "\n]\n")


def _rows(prediction: Prediction) -> Iterator[tuple[int, str, float]]:
    return zip(prediction.classes, prediction.names, prediction.probabilities, strict=True)


_WRITERS = {"table": _write_table, "csv": _write_csv, "json": _write_json}
