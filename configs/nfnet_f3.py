"""NFNet-F3 on ImageNet, the paper's recipe: 85.7% top-1 expected, not run here.

python train.py --config=configs/nfnet_f3.py --workdir=runs/f3 --config.data.dir=DIR
"""

import ml_collections

from configs import nfnet_f0


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = nfnet_f0.get_config()
    config.model.name = "nfnet_f3"
    return config
