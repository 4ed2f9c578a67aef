"""What a run tells: metrics.jsonl, TensorBoard events, the progress on the screen."""

from collections.abc import Callable, Mapping
import errno
import json
import math
import pathlib
import sys
import time
from typing import TYPE_CHECKING, TextIO

import tqdm

from nfnets.errors import UserError
from nfnets.training.files import write_whole

if TYPE_CHECKING:
    from nfnets.training.events import EventFile

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Writes metrics to `metrics.jsonl` and to TensorBoard event files of a workdir.

    What cannot be written, on a full disk for instance, is kept and tried again with the
    next entry.
    """

    def __init__(
        self, workdir: pathlib.Path, first_step: int, warn: Callable[[str], None]
    ) -> None:
        """Opens the files; entries after `first_step`, where a run resumes, are dropped.

        Args:
          workdir: of the run.
          first_step: updates made before the first entry.
          warn: gets a line when writing fails, and when it works again.
        """
        self._path = pathlib.Path(workdir) / METRICS_FILE
        _drop_after(self._path, first_step)
        self._warn = warn
        self._unwritten: list[tuple[int, dict[str, float]]] = []
        self._has_failed = False
        self._events: EventFile | None = None
        self._purge_step = first_step + 1 if first_step else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one line: `step` and the metrics, null for what is not finite."""
        self._unwritten.append((step, dict(metrics)))
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unwritten:
                self._write_line(*self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            if not self._has_failed:
                self._warn(f"WARNING   cannot write metrics: {error}; trying again later")
            self._has_failed = True
            self._events = None  # the next ones go to a new file, for this one may be cut
            return
        if self._has_failed:
            self._warn("metrics are written again; none is missing")
            self._has_failed = False

    def _write_line(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._events is None:
            # Not before the first entry: tensorboardX imports PyTorch where it is
            # installed, which takes over a second.
            from nfnets.training.events import EventFile

            self._events = EventFile(self._path.parent, self._purge_step)
        self._events.write(step, metrics)
        # Last, so that a line is not there twice when the events had to be tried again.
        numbers = {key: _json_number(value) for key, value in metrics.items()}
        _append_line(self._path, json.dumps({"step": step, **numbers}))

    def close(self) -> None:
        """Writes out what is left."""
        if self._unwritten:
            self._flush()
        if self._events is not None:
            self._events.close()


def _append_line(path: pathlib.Path, line: str) -> None:
    """Adds a whole line or nothing."""
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, 2)
        data = line.encode() + b"\n"
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, "no space left for a line", str(path))
        except OSError:
            file.truncate(size)
            raise


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """Returns the lines of a metrics.jsonl; a last line cut off by a crash is left out.

    Raises:
      UserError: another line is damaged.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(
                    f"{path}: line {number} is no JSON ({error}); remove it, or the file"
                ) from None
    return entries


def _drop_after(path: pathlib.Path, step: int) -> None:
    entries = read_metrics(path)
    kept = [entry for entry in entries if entry["step"] <= step]
    if not path.exists():
        return
    write_whole(path, "".join(json.dumps(entry) + "\n" for entry in kept))


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Progress:
    """A bar on a terminal, a line at each report elsewhere."""

    def __init__(
        self, total_steps: int, first_step: int, stream: TextIO | None = None
    ) -> None:
        """Starts the clock.

        Args:
          total_steps: of the whole run.
          first_step: where this process starts.
          stream: of the output; None: stdout.
        """
        self._stream = sys.stdout if stream is None else stream
        self._total = total_steps
        self._first = first_step
        self._start = time.monotonic()
        self._is_first_report = True
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=first_step,
                unit="step",
                dynamic_ncols=True,
                file=self._stream,
            )

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows step, loss, accuracy, images/s and the time left."""
        figures = (
            f"loss {metrics['train/loss']:.4f}  top1 {metrics['train/top1']:.3f}  "
            f"lr {metrics['train/learning_rate']:.3g}  "
            f"{metrics['train/images_per_sec']:.1f} images/s"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        self.say(f"step {step}/{self._total}  {figures}  ETA {self._time_left(step)}")
        if self._is_first_report:  # compilation took its time, the rest will not
            self._is_first_report = False
            self._first, self._start = step, time.monotonic()

    def say(self, line: str) -> None:
        """Prints a line, above the bar where there is one."""
        try:
            if self._bar is not None:
                self._bar.write(line, file=self._stream)
            else:
                print(line, file=self._stream, flush=True)
        except OSError as error:
            # The output may go to the disk that is full: no reason to stop, and nobody to
            # tell. A closed pipe is one.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise

    def _time_left(self, step: int) -> str:
        done = max(1, step - self._first)
        seconds = (time.monotonic() - self._start) / done * (self._total - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}"

    def close(self) -> None:
        """Leaves the bar where it is."""
        if self._bar is not None:
            self._bar.close()
