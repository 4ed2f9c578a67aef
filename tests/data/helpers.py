"""Record sources, images and processes for the tests of the input pipeline."""

import dataclasses
import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import numpy as np

from nfnets import data

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class NumberedSource:
    """Records whose label is their index; some of them unreadable.

    Attributes:
      length: number of records.
      unreadable: indices of records that cannot be read.
      undecodable: indices of records whose bytes are not an image.
    """

    length: int
    _: dataclasses.KW_ONLY
    unreadable: tuple[int, ...] = ()
    undecodable: tuple[int, ...] = ()

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        name = f"record {index}"
        if index in self.unreadable:
            raise data.UnreadableRecordError(name, "no such file")
        if index in self.undecodable:
            return data.Record(b"nonsense", index, name)
        rng = np.random.default_rng(index)
        return data.Record(rng.integers(0, 256, (6, 9, 3), np.uint8), index, name)


@dataclasses.dataclass(frozen=True)
class DeadlySource(NumberedSource):
    """Records one of which kills the process that reads it.

    Attributes:
      deadly: index of that record.
    """

    deadly: int = 0

    def __getitem__(self, index):
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@dataclasses.dataclass(frozen=True)
class FlakySource(NumberedSource):
    """Records some of which fail a few times before they can be read.

    Attributes:
      failures: number of failures per flaky record, in all processes together; -1: always.
      flaky: indices of these records.
      marks: a folder with one file per flaky record, one byte per failure.
      code: error number of the failures.
      seconds: duration of each failing read.
    """

    failures: int
    flaky: tuple[int, ...]
    marks: str
    code: int = errno.EIO
    seconds: float = 0.0

    def __getitem__(self, index):
        if index in self.flaky:
            mark = pathlib.Path(self.marks, str(index))
            count = mark.stat().st_size if mark.exists() else 0
            if self.failures < 0 or count < self.failures:
                time.sleep(self.seconds)
                with mark.open("ab") as file:
                    file.write(b".")
                raise OSError(self.code, os.strerror(self.code), f"record {index}")
        return super().__getitem__(index)


@dataclasses.dataclass(frozen=True)
class SlowSource(NumberedSource):
    """Records that take 20 ms to read.

    Attributes:
      marks: a folder in which every process that reads leaves a file with its id.
    """

    marks: str

    def __getitem__(self, index):
        pathlib.Path(self.marks, str(os.getpid())).touch()
        time.sleep(0.02)
        return super().__getitem__(index)


def picture(height=40, width=50, seed=0):
    """Returns a smooth color image, uint8 [height, width, 3], RGB."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)


def encoded(image, extension, *options):
    """Returns the bytes of an image file; `image` is RGB or gray."""
    if image.ndim == 3:
        image = np.ascontiguousarray(image[..., ::-1])
    ok, file = cv2.imencode(extension, image, list(options))
    assert ok
    return file.tobytes()


def write_folder(root, counts, extension=".jpg"):
    """Writes `counts[split][class]` images to root/split/class/."""
    for split, classes in counts.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / f"{split}_{name.replace('/', '_')}_{number}{extension}"
                path.write_bytes(encoded(picture(seed=number), extension.lower()))


def run_python(*arguments, timeout=60, **options):
    """Runs Python in the repository's root; returns the completed process."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
