"""Checks a folder of images before a training.

    nfnets check photos

reads every image once with all cores. The folder is PATH/SPLIT/CLASS/ or PATH/CLASS/. The
exit code is 1 if something would stop a training: a wrong layout, unreadable evaluation
images, or more unreadable training images than `data.max_bad_records`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import hashlib
import os
import pathlib
import sys
import time

import cv2
import numpy as np

from nfnets import cli
from nfnets.data.images import decode
from nfnets.data.sources.base import first_line
from nfnets.data.sources.folder import (
    SPLIT_NAMES,
    FolderOptions,
    find_eval_root,
    open_folder,
)
from nfnets.data.sources.folder_files import class_folders, scan
from nfnets.data.sources.listing import FORMATS, sniff
from nfnets.data.sources.retries import retry
from nfnets.errors import UserError

_SHOWN_CLASSES = 20
_SHOWN_COPIES = 4
_SMALL_SIDE = 32  # pixels
_LONG_ASPECT = 5
_SECONDS_BETWEEN_LINES = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFile:
    """What was found in one file.

    Attributes:
      path: relative to the folder that is checked.
      split: name of the split's folder; "" if the folder has none.
      class_name: name of the class's folder.
      size: (height, width) in pixels; None if the image is unreadable.
      num_bytes: size of the file.
      digest: of the content.
      problem: the reason why it is unreadable, or an unusual property; None: neither.
    """

    path: str
    split: str
    class_name: str
    size: tuple[int, int] | None
    num_bytes: int
    digest: bytes
    problem: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report of a folder; returns the exit code."""
    parser = cli.Parser("check", "Check a folder of images before a training.")
    parser.add_argument("path", help="PATH of data.source=folder:PATH")
    parser.add_argument(
        "--eval_split", default="validation", help="name of the evaluation folder"
    )
    parser.add_argument(
        "--max_bad_records",
        type=int,
        default=100,
        help="unreadable training images that a training allows",
    )
    parser.add_argument(
        "--show", type=cli.positive_int, default=10, help="files named of each kind"
    )
    options = parser.parse_args(arguments)
    root = pathlib.Path(options.path.removeprefix("folder:")).expanduser()
    if not root.is_dir():
        raise UserError(f"folder {root} does not exist")
    cli.escape_file_names()
    # Damaged files are reported below, by name.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    has_eval_folder = find_eval_root(root, options.eval_split).is_dir()
    files, remarks = read_files(root, options.eval_split)
    for line in (
        *describe_files(files, root, options.show),
        *(f"\n{line}" for line in remarks),
    ):
        print(line)
    obstacles = find_obstacles(files, root, options.eval_split, options.max_bad_records)
    print()
    for line in obstacles:
        print(f"ERROR: {line}")
    if not has_eval_folder and not obstacles:
        print("no evaluation folder: train with data.eval_fraction, such as 0.1")
    print("this would stop a training" if obstacles else "ready for training")
    return 1 if obstacles else 0


def read_files(root: pathlib.Path, eval_split: str) -> tuple[list[ImageFile], list[str]]:
    """Reads and decodes every image of a folder once, with all cores.

    Args:
      root: the folder.
      eval_split: name of a split's folder, beside the usual names.

    Returns:
      The images in the order of their paths, and lines about files that are left out.

    Raises:
      UserError: the folder cannot be read.
    """
    jobs: list[tuple[str, str, str]] = []
    remarks: list[str] = []
    usual = (*SPLIT_NAMES, eval_split)
    splits = [n for n in class_folders(root) if n in usual or n.lower() in usual]
    for split in splits or [""]:
        try:
            files = scan(root / split)
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        remarks += files.describe_left_out(root / split)
        for index, label in enumerate(files.labels.tolist()):
            path = os.path.join(split, os.fsdecode(files.relative_path(index)))
            jobs.append((path, split, files.class_names[label]))
    # OpenCV releases Python's lock.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = pool.map(lambda job: _read_file(root, *job), jobs)
        return list(_with_progress(found, len(jobs))), remarks


def describe_files(
    files: Sequence[ImageFile], root: pathlib.Path, show: int
) -> Iterable[str]:
    """Yields the lines of the report.

    Args:
      files: from `read_files`.
      root: the folder that was checked.
      show: number of files to name of each kind.
    """
    megabytes = sum(file.num_bytes for file in files) / 1e6
    yield f"{root}: {_count(len(files), 'image')}, {megabytes:,.1f} MB"
    if not files:
        return
    yield from _describe_classes(files)
    yield from _describe_sizes(files)
    unreadable = [f"{f.path}: {f.problem}" for f in files if f.size is None]
    odd = [f"{f.path}: {f.problem}" for f in files if f.size is not None and f.problem]
    groups = defaultdict(list)
    for file in files:
        if file.size is not None:
            groups[file.digest].append(file)
    within, across = [], []
    for group in groups.values():
        splits: dict[str, ImageFile] = {}
        for file in group:
            splits.setdefault(file.split, file)
        shown = [*splits.values(), *(f for f in group if f not in splits.values())]
        line = " = ".join(file.path for file in shown[:_SHOWN_COPIES])
        if group[_SHOWN_COPIES:]:
            line += f" and {len(group) - _SHOWN_COPIES:,} more"
        if len(splits) > 1:
            across.append(line)
        elif len(group) > 1:
            within.append(line)
    for title, lines in (
        ("unreadable", unreadable),
        ("odd", odd),
        ("the same image in several splits, which makes evaluation too optimistic", across),
        ("the same image several times in a split", within),
    ):
        if lines:
            yield f"\n{title}: {len(lines):,}"
            yield from (f"  {line}" for line in lines[:show])
            if lines[show:]:
                yield f"  ... and {len(lines) - show:,} more (--show={len(lines)})"


def find_obstacles(
    files: Sequence[ImageFile], root: pathlib.Path, eval_split: str, max_bad_records: int
) -> list[str]:
    """Returns what would stop a training.

    Args:
      files: from `read_files`.
      root: the folder that was checked.
      eval_split: name of the evaluation folder; where it is missing, a part of the
        training images is assumed to be held out.
      max_bad_records: see `DataConfig`.
    """
    obstacles = []
    eval_root = find_eval_root(root, eval_split)
    options = FolderOptions(
        eval_split=eval_split,
        eval_fraction=0.0 if eval_root.is_dir() else 0.1,
        log=lambda _: None,  # `read_files` has told
    )
    try:
        open_folder(str(root), options)
    except UserError as error:
        obstacles.append(str(error))
    bad = Counter(file.split for file in files if file.size is None)
    train = "train" if (root / "train").is_dir() else ""
    if bad[eval_root.name]:
        count = _count(bad[eval_root.name], "unreadable image")
        obstacles.append(f"{count} in {eval_root}")
    if bad[train] and not eval_root.is_dir():
        count = _count(bad[train], "unreadable image")
        obstacles.append(f"{count} in {root / train}, of which evaluation may get some")
    elif bad[train] > max_bad_records:
        obstacles.append(
            f"{bad[train]:,} unreadable images in {root / train}, more than "
            f"data.max_bad_records={max_bad_records}"
        )
    return obstacles


def _read_file(root: pathlib.Path, path: str, split: str, class_name: str) -> ImageFile:
    data, size, problem = b"", None, None
    try:
        data = retry((root / path).read_bytes, path)
        size = decode(data).shape[:2]
        problem = _find_oddity(path, data, size)
    except OSError as error:
        problem = first_line(error)
    except UserError as error:
        problem = str(error)
    return ImageFile(
        path=path,
        split=split,
        class_name=class_name,
        size=size,
        num_bytes=len(data),
        digest=hashlib.blake2b(data, digest_size=16).digest(),
        problem=problem,
    )


def _find_oddity(path: str, data: bytes, size: tuple[int, int]) -> str | None:
    """Returns an unusual property of an image, None if it has none."""
    kind = sniff(data[:16])
    suffix = os.path.splitext(path)[1].lower()
    height, width = size
    if kind is not None and suffix not in FORMATS[kind][0]:
        return f"a {kind} file named {suffix or 'without a suffix'}"
    if min(size) < _SMALL_SIDE:
        return f"small, {width} x {height} pixels"
    if max(size) > _LONG_ASPECT * min(size):
        return f"long, {width} x {height} pixels"
    return None


def _describe_classes(files: Sequence[ImageFile]) -> Iterable[str]:
    """Yields a table of the images of each class and split."""
    splits = sorted({f.split for f in files}, key=lambda s: (s != "train", s))
    counts = Counter((f.class_name, f.split) for f in files)
    totals = Counter(f.class_name for f in files)
    names = sorted(totals, key=lambda name: (-totals[name], name))
    shown = names
    if len(names) > _SHOWN_CLASSES:
        half = _SHOWN_CLASSES // 2
        shown = [*names[:half], "...", *names[-half:]]
    total = _count(len(names), "class", "classes")
    width = max(len(text) for text in ("class", total, *shown))
    yield f"\n{'class':<{width}}" + "".join(f"{s or 'images':>12}" for s in splits)
    for name in shown:
        cells = "" if name == "..." else "".join(f"{counts[name, s]:>12,}" for s in splits)
        yield f"{name:<{width}}{cells}".rstrip()
    sums = Counter(f.split for f in files)
    yield f"{total:<{width}}" + "".join(f"{sums[s]:>12,}" for s in splits)


def _describe_sizes(files: Sequence[ImageFile]) -> Iterable[str]:
    """Yields a line about the images' sizes."""
    sides = np.array([f.size for f in files if f.size is not None])
    if not len(sides):
        return
    order = np.argsort(sides.min(axis=1), kind="stable")
    smallest, median, largest = (
        "{1} x {0}".format(*sides[order[i]].tolist()) for i in (0, len(order) // 2, -1)
    )
    if len(np.unique(sides, axis=0)) == 1:
        yield f"\nsize: {smallest} pixels"
        return
    yield f"\nsizes: {smallest} (smallest), {median} (median), {largest} (largest) pixels"


def _with_progress(found: Iterable[ImageFile], total: int) -> Iterable[ImageFile]:
    """Yields the files, with a line on stderr every few seconds."""
    start = shown = time.monotonic()
    for number, file in enumerate(found, 1):
        now = time.monotonic()
        if now - shown > _SECONDS_BETWEEN_LINES:
            shown = now
            left = (now - start) / number * (total - number)
            print(
                f"read {number:,} of {total:,} images, {left:.0f} s left", file=sys.stderr
            )
        yield file


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
