"""Trains a model: python train.py --config=configs/digits.py --workdir=runs/digits"""

from absl import flags

from nfnets.training import cli

_CONFIG = cli.define_config()
_PROCESSES = cli.ProcessFlags()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run: configuration, metrics, checkpoints. Starting again with the same "
    "folder goes on where the run stopped. Default: runs/NAME_OF_CONFIG.",
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what would run, take one step on fake data, write nothing."
)


def main() -> int:
    """Runs training with the command line's flags; returns the exit code."""
    # After parsing: --help and mistakes answer at once.
    from nfnets.training import distributed, loop

    workdir = _WORKDIR.value or cli.default_workdir()
    with distributed.session(**_PROCESSES.values()):
        return loop.train(_CONFIG.value, workdir, dry_run=_DRY_RUN.value)


if __name__ == "__main__":
    cli.run(main)
