"""NF-ResNet-50 on ImageNet, with the published recipe.

    python train.py --config=configs/nf_resnet50.py --workdir=runs/nf_resnet50 \
        --config.data.dir=DIR

The recipe of resnet50.py: 90 epochs at batch 1024 without clipping. Larger batches need
it: --config.data.batch_size=4096 --config.optimizer.clipping=0.01.
"""

import ml_collections

from configs import resnet50


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = resnet50.get_config()
    config.model.name = "nf_resnet50"
    return config
