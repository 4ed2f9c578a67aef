"""NFNet-F6 on ImageNet, the paper's recipe without SAM (`nfnet_f6_sam.py`): not run here.

python train.py --config=configs/nfnet_f6.py --workdir=runs/f6 --config.data.dir=DIR
"""

import ml_collections

from configs import nfnet_f0


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = nfnet_f0.get_config()
    config.model.name = "nfnet_f6"
    return config
