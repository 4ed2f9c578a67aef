"""Classifies image files.

    python -m nfnets.predict --weights=f0.safetensors cat.jpg photos/ --top=3 --format=csv

The weights file says which model, which preprocessing and which class names. Files that
cannot be read are named on stderr and skipped; the exit code is 2 if none could be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import csv
import dataclasses
import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, TextIO

import numpy as np

from nfnets import command
from nfnets.data.folder import EXTENSIONS
from nfnets.data.images import EVAL_METHODS, decode, preprocess_eval
from nfnets.errors import UserError

if TYPE_CHECKING:
    from nfnets.inference import Classifier


# Longer ones move the rest of their line to the right.
_WIDEST_PATH = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of one image, the likeliest first.

    Attributes:
      path: of the file.
      classes: their numbers.
      names: their names.
      probabilities: in [0, 1], of each.
    """

    path: str
    classes: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what the command line asks for; returns the exit code."""
    parser = command.Parser("nfnets.predict", "Classifies image files.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files or folders")
    parser.add_argument("--weights", required=True, help="a .safetensors file")
    parser.add_argument(
        "--top", type=command.positive_int, default=5, help="classes per image"
    )
    parser.add_argument(
        "--format", choices=tuple(_WRITERS), default="table", help="of the output"
    )
    parser.add_argument(
        "--batch_size", type=command.positive_int, default=32, help="images at a time"
    )
    options = parser.parse_args(arguments)
    paths = find_images(options.images)
    # Takes seconds to import: only when the arguments are in order.
    from nfnets.inference import load_classifier
    from nfnets.training import cpu
    from nfnets.training.setup import enable_compilation_cache

    cpu.run_in_main_thread()
    enable_compilation_cache()
    classifier = load_classifier(options.weights)
    cpu.keep_memory()
    found = predict(classifier, paths, top=options.top, batch_size=options.batch_size)
    width = min(_WIDEST_PATH, max(map(len, paths)))
    return 0 if _WRITERS[options.format](found, sys.stdout, width) else 2


def find_images(names: Iterable[str]) -> list[str]:
    """Returns the files named, and those in the folders named, at any depth.

    Raises:
      UserError: a folder without images.
    """
    paths: list[str] = []
    for name in names:
        if not os.path.isdir(name):
            paths.append(name)
            continue
        inside = sorted(
            str(path)
            for path in pathlib.Path(name).rglob("*")
            if path.suffix.lower() in EXTENSIONS and path.is_file()
        )
        if not inside:
            raise UserError(f"the folder {name} has no {'/'.join(EXTENSIONS)} files")
        paths += inside
    return paths


def predict(
    classifier: Classifier, paths: Sequence[str], *, top: int = 5, batch_size: int = 32
) -> Iterator[Prediction]:
    """Classifies image files in order; names on stderr those that it cannot read.

    While the device works on one batch, the next one is read and decoded.

    Args:
      classifier: from `nfnets.inference.load_classifier`.
      paths: of the files.
      top: classes per image; at most all.
      batch_size: images at a time; the last batch is filled up, so that only one shape
        is compiled.

    Raises:
      UserError: the weights ask for a preprocessing that there is not.
    """
    if classifier.info.preprocessing not in EVAL_METHODS:
        raise UserError(
            f"the weights ask for the preprocessing {classifier.info.preprocessing!r}; "
            f"known: {', '.join(EVAL_METHODS)}"
        )
    batch_size = min(batch_size, max(1, len(paths)))
    size, method = classifier.info.image_size, classifier.info.preprocessing
    compiled = classifier.compile()
    waiting = None
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), batch_size):
            chunk = paths[start : start + batch_size]
            loaded = list(pool.map(lambda path: _load(path, size, method), chunk))
            good = [
                (path, image)
                for path, image in zip(chunk, loaded, strict=True)
                if image is not None
            ]
            if good:
                batch = np.zeros((batch_size, size, size, 3), np.uint8)
                batch[: len(good)] = [image for _, image in good]
                started = ([path for path, _ in good], compiled(batch))
                if waiting:
                    yield from _finish(classifier, *waiting, top)
                waiting = started
        if waiting:
            yield from _finish(classifier, *waiting, top)


def _load(path: str, size: int, method: str) -> np.ndarray | None:
    try:
        data = pathlib.Path(path).read_bytes()
        return preprocess_eval(decode(data), size, method)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        print(f"skipped {path}: {' '.join(str(reason).split())}", file=sys.stderr)
        return None


def _finish(
    classifier: Classifier, paths: Sequence[str], probabilities: np.ndarray, top: int
) -> Iterator[Prediction]:
    for path, row in zip(paths, np.asarray(probabilities), strict=False):
        best = np.argsort(-row, kind="stable")[:top].tolist()
        yield Prediction(
            path=path,
            classes=tuple(best),
            names=tuple(classifier.class_name(index) for index in best),
            probabilities=tuple(row[best].tolist()),
        )


# Each writes predictions as they come and returns how many there were.


def _write_table(predictions: Iterable[Prediction], out: TextIO, width: int) -> int:
    out.write(f"{'image':<{width}}  {'probability':>11}  class\n")
    count = 0
    for count, prediction in enumerate(predictions, start=1):  # noqa: B007
        path = prediction.path
        for name, probability in zip(
            prediction.names, prediction.probabilities, strict=True
        ):
            out.write(f"{path:<{width}}  {probability:>11.2%}  {name}\n")
            path = ""
        out.flush()
    return count


def _write_csv(predictions: Iterable[Prediction], out: TextIO, _: int) -> int:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "name", "probability"))
    count = 0
    for count, prediction in enumerate(predictions, start=1):  # noqa: B007
        rows = zip(
            prediction.classes, prediction.names, prediction.probabilities, strict=True
        )
        for rank, (index, name, probability) in enumerate(rows, start=1):
            writer.writerow((prediction.path, rank, index, name, f"{probability:.6f}"))
    return count


def _write_json(predictions: Iterable[Prediction], out: TextIO, _: int) -> int:
    count = 0
    for count, prediction in enumerate(predictions, start=1):
        rows = zip(
            prediction.classes, prediction.names, prediction.probabilities, strict=True
        )
        entry = {
            "image": prediction.path,
            "predictions": [
                {"class": index, "name": name, "probability": probability}
                for index, name, probability in rows
            ],
        }
        out.write(("[\n" if count == 1 else ",\n") + json.dumps(entry))
    out.write("\n]\n" if count else "[]\n")
    return count


_WRITERS = {"table": _write_table, "csv": _write_csv, "json": _write_json}


if __name__ == "__main__":
    command.run(main)
