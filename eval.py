"""Evaluates a run: python eval.py --config=configs/digits.py --workdir=runs/digits"""

from absl import flags

from nfnets.errors import UserError
from nfnets.training import cli

_CONFIG = cli.define_config()
_PROCESSES = cli.ProcessFlags()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a run of train.py; eval.json is written there."
)
_STEP = flags.DEFINE_integer(
    "step", None, "Checkpoint of the run to evaluate; the newest by default."
)
_WEIGHTS = flags.DEFINE_string("weights", None, "A .safetensors file, in place of a run.")


def main() -> None:
    """Runs evaluation with the command line's flags."""
    # After parsing: mistakes answer at once.
    from nfnets.training import distributed, scoring

    if (_WORKDIR.value is None) == (_WEIGHTS.value is None):
        raise UserError("give either --workdir=DIR or --weights=FILE")
    with distributed.session(**_PROCESSES.values()):
        if _WEIGHTS.value is not None:
            scoring.evaluate_weights(_CONFIG.value, _WEIGHTS.value)
        else:
            scoring.evaluate_workdir(_CONFIG.value, _WORKDIR.value, step=_STEP.value)


if __name__ == "__main__":
    cli.run(main)
