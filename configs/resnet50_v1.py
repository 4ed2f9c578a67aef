"""ResNet-50 with batch normalization after every convolution, on ImageNet.

    python train.py --config=configs/resnet50_v1.py --workdir=runs/resnet50_v1 \
        --config.data.dir=DIR

The recipe of resnet50.py, with activations after the sums, as in the original ResNet.
"""

import ml_collections

from configs import resnet50


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = resnet50.get_config()
    config.model.name = "resnet50_v1"
    return config
