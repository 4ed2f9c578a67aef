"""Starts train.py and eval.py as programs, reads their output, and disturbs them."""

import os
import pathlib
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from typing import Self

CONFIG = "tests/training/survival_config.py"
DISTURBED = "tests/training/disturbed.py"
# Seconds; four times what anything here takes on an idle machine.
TIMEOUT = 150.0

# What C++ prints on connecting, in pieces if several threads print at once.
_GLOO = re.compile(r".*(\[Gloo\]|peer ranks).*|[\d\s:]*")


class Process:
    """A program that runs, with its output line by line.

    Attributes:
      lines: of stdout so far.
      popen: the process.
    """

    def __init__(
        self, arguments: list[str], devices: int | None = None, **environ: str
    ) -> None:
        """Starts `python ARGUMENTS`.

        With pytest's own flags of XLA, so that programs are compiled once for all tests
        and give the same bits; on another number of CPU devices if given.
        """
        flags = os.environ["XLA_FLAGS"]
        if devices is not None:
            flags = re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", flags)
        environ = {**os.environ, "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1", **environ}
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )
        self.lines: list[str] = []
        self._errors: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_output(self) -> None:
        for line in self.popen.stdout:
            if _GLOO.fullmatch(line.strip()):
                continue
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def _read_errors(self) -> None:
        for line in self.popen.stderr:
            self._errors.append(line.rstrip("\n"))

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Leaves no process behind."""
        self.popen.kill()
        self.popen.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            stream.close()

    def wait_for(self, pattern: str, timeout: float = TIMEOUT) -> str:
        """Returns the next line of stdout that the regular expression finds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {timeout} s:\n{self}") from None
            if line is None:
                raise AssertionError(f"ended without {pattern!r}:\n{self}")
            self.lines.append(line)
            if re.search(pattern, line):
                return line

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal."""
        self.popen.send_signal(number)

    def release(self) -> None:
        """Resumes a process that `hooks.StepHook` has paused."""
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def end(self, timeout: float = TIMEOUT) -> int:
        """Waits for the end; returns the exit code."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self}") from None
        for reader in self._readers:
            reader.join(timeout)
        while (line := self._queue.get(timeout=timeout)) is not None:
            self.lines.append(line)
        return code

    def find(self, pattern: str) -> re.Match[str]:
        """Returns the match of a regular expression in the output so far."""
        match = re.search(pattern, self.output)
        assert match, f"no {pattern!r}:\n{self}"
        return match

    @property
    def last_error(self) -> str:
        """The very last line of stderr."""
        return self._errors[-1] if self._errors else ""

    @property
    def errors(self) -> list[str]:
        """Lines of stderr so far, without those of the C++ libraries' loggers."""
        return [line for line in self._errors if not re.match(r"[WI]\d{4} ", line)]

    @property
    def output(self) -> str:
        """The output so far."""
        return "\n".join(self.lines)

    def __str__(self) -> str:
        return "\n".join(["stdout:", *self.lines[-15:], "stderr:", *self._errors[-30:]])


class Place:
    """Starts runs of the survival config."""

    def train(
        self, workdir: pathlib.Path, *arguments: str, script: str = "train.py", **options
    ) -> Process:
        """Starts train.py, or another script in its place."""
        common = [f"--config={CONFIG}", f"--workdir={workdir}"]
        return Process([script, *common, *arguments], **options)

    def evaluate(self, workdir: pathlib.Path, *arguments: str, **options) -> Process:
        """Starts eval.py on a run."""
        common = [f"--config={CONFIG}", f"--workdir={workdir}"]
        return Process(["eval.py", *common, *arguments], **options)

    def train_to_end(
        self,
        workdir: pathlib.Path,
        *arguments: str,
        timeout: float = TIMEOUT,
        **options,
    ) -> Process:
        """Runs train.py to its last step, in silence on stderr."""
        with self.train(workdir, *arguments, **options) as run:
            code = run.end(timeout)
        assert code == 0, str(run)
        assert not run.errors, str(run)
        return run

    def several(self, workdir: pathlib.Path, *arguments: str, **options) -> list[Process]:
        """Starts the two processes of one run, two devices each."""
        return [
            self.train(workdir, *flags, *arguments, devices=2, **options)
            for flags in _process_flags()
        ]

    def several_evaluations(self, workdir: pathlib.Path) -> list[Process]:
        """Starts the two processes of one evaluation, two devices each."""
        return [self.evaluate(workdir, *flags, devices=2) for flags in _process_flags()]


def _process_flags() -> list[list[str]]:
    coordinator = f"--coordinator=localhost:{free_port()}"
    return [
        [coordinator, "--num_processes=2", f"--process_id={number}"] for number in range(2)
    ]


def wait_for_checkpoint(workdir: pathlib.Path, step: int) -> None:
    """Waits until a checkpoint is complete."""
    deadline = time.monotonic() + TIMEOUT
    while not (workdir / "checkpoints" / str(step)).is_dir():
        assert time.monotonic() < deadline, f"no checkpoint of step {step}"
        time.sleep(0.01)


def free_port() -> int:
    """Returns an unused port."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]
