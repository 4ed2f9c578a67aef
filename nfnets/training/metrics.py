"""What a run tells: metrics.jsonl, TensorBoard events, the progress on the screen."""

from collections.abc import Mapping
import json
import math
import pathlib
import sys
import time
from typing import TextIO

import tensorboardX
import tqdm

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Writes metrics to `metrics.jsonl` and to TensorBoard event files of a workdir."""

    def __init__(self, workdir: pathlib.Path, first_step: int) -> None:
        """Opens the files; entries after `first_step`, where a run resumes, are dropped."""
        self._path = pathlib.Path(workdir) / METRICS_FILE
        _drop_after(self._path, first_step)
        self._file = self._path.open("a", buffering=1)
        self._events = tensorboardX.SummaryWriter(
            str(workdir), purge_step=first_step + 1 if first_step else None
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one line: `step` and the metrics, null for what is not finite."""
        numbers = {key: _json_number(value) for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        for key, value in metrics.items():
            self._events.add_scalar(key, value, step)

    def close(self) -> None:
        """Writes out what is left."""
        self._file.close()
        self._events.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """Returns the lines of a metrics.jsonl; a last line cut off by a crash is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise
    return entries


def _drop_after(path: pathlib.Path, step: int) -> None:
    entries = read_metrics(path)
    kept = [entry for entry in entries if entry["step"] <= step]
    if not path.exists():
        return
    # Replaced as a whole, so that a crash leaves the old file or the new one.
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    temporary.replace(path)


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
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

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
