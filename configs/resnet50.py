"""ResNet-50 with batch normalization, pre-activation, on ImageNet.

    python train.py --config=configs/resnet50.py --workdir=runs/resnet50 \
        --config.data.dir=DIR

The published baseline recipe: 90 epochs at batch 1024, 224 pixels, weight decay 1e-4, no
augmentation but crops and flips. The configs of the other ResNets start from this one;
--config.model.name=resnet101 gives a deeper network.
"""

import ml_collections

from nfnets.training.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default_config()
    config.model.name = "resnet50"
    config.model.compute_dtype = "float32"
    config.data.source = "tfds:imagenet2012"
    config.data.batch_size = 1024
    config.data.workers = 8
    config.data.apply_exif = False  # as the published weights
    config.augment.mixup_fraction = 0.0
    config.augment.cutmix_fraction = 0.0
    config.optimizer.clipping = None
    config.train.epochs = 90.0
    config.train.ema.ema = None
    config.eval.preprocessing = "crop_resize"
    return config
