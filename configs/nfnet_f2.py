"""NFNet-F2 on ImageNet, with the paper's recipe (85.1% top-1 in the paper).

    python train.py --config=configs/nfnet_f2.py --workdir=runs/f2 --config.data.dir=DIR

Everything else follows nfnet_f0.py.
"""

import ml_collections

from configs import nfnet_f0


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = nfnet_f0.get_config()
    config.model.name = "nfnet_f2"
    return config
