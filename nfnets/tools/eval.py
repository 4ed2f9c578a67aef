"""Evaluates a run, or a weights file.

nfnets eval --workdir=runs/digits
nfnets eval --config=configs/nfnet_f0.py --weights=nfnet_f0
"""

from collections.abc import Sequence

from nfnets import cli
from nfnets.errors import UserError
from nfnets.tools.extract import step


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates as the command line says."""
    parser = cli.ConfigParser("eval", "Evaluate a run or a weights file.")
    parser.add_argument("--workdir", help="folder of a run; eval.json is written there")
    parser.add_argument(
        "--step", type=step, help="checkpoint of the run, or best (default: the newest)"
    )
    cli.add_weights_option(parser, note="; in place of a run")
    parser.add_argument(
        "--report",
        nargs="?",
        const="raw",
        metavar="WEIGHTS",
        help="also write accuracy by class, confusions, calibration and the worst mistakes "
        "of these weights (raw, or an average such as ema) into WORKDIR/report",
    )
    cli.add_process_options(parser)
    options, config = parser.parse(arguments)
    if (options.workdir is None) == (options.weights is None):
        raise UserError("give either --workdir=DIR or --weights=FILE")
    # Imported only now: mistakes in the command line are reported at once.
    from nfnets.training import distributed, run_evaluation

    with distributed.session(
        options.coordinator, options.num_processes, options.process_id
    ):
        if options.weights is not None:
            run_evaluation.evaluate_weights(config, options.weights)
        else:
            run_evaluation.evaluate_workdir(
                config, options.workdir, step=options.step, report=options.report
            )
