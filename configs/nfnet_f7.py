"""NFNet-F7 on ImageNet, with the recipe of F6; the paper reports no accuracy.

    python train.py --config=configs/nfnet_f7.py --workdir=runs/f7 --config.data.dir=DIR

Everything else follows nfnet_f0.py.
"""

import ml_collections

from configs import nfnet_f0


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = nfnet_f0.get_config()
    config.model.name = "nfnet_f7"
    return config
