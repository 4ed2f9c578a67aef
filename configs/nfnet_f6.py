"""NFNet-F6 on ImageNet, the paper's recipe: not run here (86.5% is with SAM).

python train.py --config=configs/nfnet_f6.py --workdir=runs/f6 --config.data.dir=DIR
"""

import ml_collections

from configs import nfnet_f0


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = nfnet_f0.get_config()
    config.model.name = "nfnet_f6"
    return config
