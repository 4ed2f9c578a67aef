"""Grids of runs: what is missing is run, results are kept in results/NAME.json."""

import argparse
from collections.abc import Callable, Iterable, Mapping
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from experiments.training import Settings, train
from nfnets import files

RESULTS = pathlib.Path(__file__).parent / "results"
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings and what came out, as `train` returns it."""

    settings: Settings
    result: Mapping[str, Any]


def encode(settings: Settings) -> str:
    """Returns the settings that are not the defaults as JSON, which identifies a run."""
    fields = dataclasses.asdict(settings)
    defaults = dataclasses.asdict(type(settings)())
    differences = {key: value for key, value in fields.items() if value != defaults[key]}
    return json.dumps(differences, sort_keys=True)


def decode(fields: Mapping[str, Any]) -> Settings:
    """Returns the settings of a run in a results file."""

    def as_tuple(value: Any) -> Any:
        return tuple(map(as_tuple, value)) if isinstance(value, list) else value

    return Settings(**{key: as_tuple(value) for key, value in fields.items()})


def read(name: str) -> list[Run]:
    """Reads the runs of an experiment; none if it was not run."""
    path = RESULTS / f"{name}.json"
    entries = json.loads(path.read_text())["runs"] if path.exists() else []
    return [Run(decode(entry["settings"]), entry["result"]) for entry in entries]


def write(name: str, runs: Iterable[Run]) -> None:
    """Writes the runs of an experiment, one a line."""
    lines = [
        f'{{"settings": {encode(run.settings)}, "result": {json.dumps(run.result)}}}'
        for run in runs
    ]
    text = '{"runs": [\n' + ",\n".join(lines) + "\n]}\n"
    files.write_text_atomically(RESULTS / f"{name}.json", text)


def run_grid(
    name: str,
    grid: Iterable[Settings],
    *,
    shared: Iterable[str] = (),
    train: Callable[[Settings], Mapping[str, Any]] = train,
) -> list[Run]:
    """Runs what the results lack and writes after each run, so that it may be stopped.

    Args:
      name: of the experiment.
      grid: the runs.
      shared: experiments whose results are taken where they have the same run.
      train: runs one.

    Returns:
      The runs of the grid in its order.
    """
    known = {encode(run.settings): run for other in (*shared, name) for run in read(other)}
    grid = list(dict.fromkeys(grid))
    for number, settings in enumerate(grid):
        key = encode(settings)
        if key not in known:
            known[key] = Run(settings, train(settings))
            done = [known[encode(s)] for s in grid if encode(s) in known]
            write(name, done)
            result = {k: v for k, v in known[key].result.items() if k != "losses"}
            print(f"{number + 1}/{len(grid)} {key} {result}", flush=True)
    runs = [known[encode(settings)] for settings in grid]
    write(name, runs)
    return runs


def select(runs: Iterable[Run], **fields: Any) -> list[Run]:
    """Returns the runs whose settings have these values."""
    return [
        run
        for run in runs
        if all(getattr(run.settings, key) == value for key, value in fields.items())
    ]


def accuracy(runs: Iterable[Run]) -> tuple[float, float]:
    """Returns mean and standard deviation of the accuracy in percent."""
    values = [run.result["accuracy"] for run in runs]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def diverged(runs: Iterable[Run]) -> int:
    """Returns the number of runs whose loss became infinite or NaN."""
    return sum(run.result["diverged"] for run in runs)


def minutes(runs: Iterable[Run]) -> float:
    """Returns the CPU time of the runs."""
    return sum(run.result["seconds"] for run in runs) / 60


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Returns a Markdown table; columns after the first are aligned to the right."""
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main(
    name: str,
    grid: Iterable[Settings],
    quick: Iterable[Settings],
    full: Iterable[Mapping[str, Any]],
    *,
    config: str = "configs/nf_resnet50.py",
    shared: Iterable[str] = (),
) -> None:
    """Runs an experiment from the command line.

    Args:
      name: of the experiment.
      grid: runs whose results are committed.
      quick: a few seconds of it; printed, not kept.
      full: overrides of `config` for every run of the paper's grid, on ImageNet.
      config: recipe of `--full`.
      shared: see `run_grid`.
    """
    parser = argparse.ArgumentParser(f"python -m experiments.{name}")
    parser.add_argument("--quick", action="store_true", help="a few seconds; keeps nothing")
    parser.add_argument("--full", action="store_true", help="the paper's grid on ImageNet")
    parser.add_argument(
        "--dry_run", action="store_true", help="with --full: print the commands only"
    )
    parser.add_argument("--workdir", default=f"runs/{name}", help="of --full")
    options, further = parser.parse_known_args()
    if further and not options.full:
        parser.error(f"unknown arguments: {' '.join(further)}")
    if options.full:
        for number, command in enumerate(commands(config, full, options.workdir)):
            print(" ".join(command + further), flush=True)
            if not options.dry_run and subprocess.call(command + further):
                print(f"run {number} failed; see its log", file=sys.stderr)
    elif options.quick:
        for settings in quick:
            print(encode(settings), train(settings))
    else:
        run_grid(name, grid, shared=shared)


def commands(
    config: str, grid: Iterable[Mapping[str, Any]], workdir: str
) -> list[list[str]]:
    """Returns a call of `nfnets train` for each run of a grid on ImageNet.

    Args:
      config: recipe.
      grid: overrides of each run, such as {"optimizer.clipping": 0.01}.
      workdir: folder of all runs.
    """
    calls = []
    for overrides in grid:
        label = "-".join(
            f"{key.split('.')[-1]}={value}" for key, value in overrides.items()
        )
        flags = [f"--config.{key}={value}" for key, value in overrides.items()]
        folder = os.path.join(workdir, label.replace("/", "_"))
        program = [sys.executable, "-m", "nfnets", "train", f"--config={config}"]
        calls.append([*program, f"--workdir={folder}", *flags])
    return calls
