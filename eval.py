"""Evaluates a run: python eval.py --config=configs/digits.py --workdir=runs/digits"""

from nfnets import cli
from nfnets.tools import eval as evaluation

if __name__ == "__main__":
    cli.run(evaluation.main)
