"""NFNet-F6 on ImageNet, with the paper's recipe but without SAM (see nfnet_f6_sam.py).

    python train.py --config=configs/nfnet_f6.py --workdir=runs/f6 --config.data.dir=DIR

Everything else follows nfnet_f0.py.
"""

import ml_collections

from configs import nfnet_f0


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = nfnet_f0.get_config()
    config.model.name = "nfnet_f6"
    return config
