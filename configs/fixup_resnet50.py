"""ResNet-50 with FixUp instead of normalization, on ImageNet.

    python train.py --config=configs/fixup_resnet50.py --workdir=runs/fixup_resnet50 \
        --config.data.dir=DIR

The recipe of resnet50.py, with stochastic depth 0.1 as in the published model.
"""

import ml_collections

from configs import resnet50


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = resnet50.get_config()
    config.model.name = "fixup_resnet50"
    return config
