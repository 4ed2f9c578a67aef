"""Trains a model, or resumes a run.

nfnets train --config=configs/digits.py --workdir=runs/digits
"""

from collections.abc import Sequence
import pathlib

from nfnets import cli
from nfnets.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the command line says; returns the exit code."""
    parser = cli.ConfigParser("train", "Train a model, or resume a run.")
    parser.add_argument(
        "--workdir",
        help="folder of the run: config, metrics, checkpoints; the same folder resumes "
        "the run (default: runs/NAME_OF_CONFIG)",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the run's description, take one step on fake data, write nothing",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved config as JSON"
    )
    cli.add_process_options(parser)
    options, config = parser.parse(arguments)
    workdir = options.workdir or str(
        pathlib.Path("runs", pathlib.Path(options.config).stem)
    )
    # Imported only now: mistakes in the command line are reported at once.
    from nfnets.training import distributed, loop

    with distributed.session(
        options.coordinator, options.num_processes, options.process_id
    ):
        code = loop.train(
            config, workdir, dry_run=options.dry_run, print_config=options.print_config
        )
        if code == 0 and not options.dry_run and distributed.is_primary():
            _draw_curves(workdir)
        return code


def _draw_curves(workdir: str) -> None:
    from nfnets.tools.curves import plot_curves
    from nfnets.training.distributed import log

    out = pathlib.Path(workdir, "curves.png")
    try:
        plot_curves([pathlib.Path(workdir)], out)
    except UserError as error:
        log(f"WARNING   {error}")
    else:
        log(f"curves    {out}")
