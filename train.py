"""Trains a model: python train.py --config=configs/digits.py --workdir=runs/digits"""

from nfnets import cli
from nfnets.tools import train

if __name__ == "__main__":
    cli.run(train.main)
