"""NFNet-F7 on ImageNet, the paper's recipe: no figure in the paper, not run here.

python train.py --config=configs/nfnet_f7.py --workdir=runs/f7 --config.data.dir=DIR
"""

import ml_collections

from configs import nfnet_f0


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = nfnet_f0.get_config()
    config.model.name = "nfnet_f7"
    return config
