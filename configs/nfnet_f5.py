"""NFNet-F5 on ImageNet, with the paper's recipe (86.0% top-1 in the paper).

    python train.py --config=configs/nfnet_f5.py --workdir=runs/f5 --config.data.dir=DIR

Everything else follows nfnet_f0.py.
"""

import ml_collections

from configs import nfnet_f0


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = nfnet_f0.get_config()
    config.model.name = "nfnet_f5"
    return config
