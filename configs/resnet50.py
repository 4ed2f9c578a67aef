"""ResNet-50 with batch normalisation, pre-activation, on ImageNet; not run here.

    python train.py --config=configs/resnet50.py --workdir=runs/resnet50 \
        --config.data.dir=DIR

The published baseline recipe: 90 epochs at batch 1024, 224 pixels, weight decay 1e-4, no
augmentation but crops and flips. The other ResNets' configs start from this one;
--config.model.name=resnet101 gives a deeper one.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.model.name = "resnet50"
    config.model.compute_dtype = "float32"
    config.data.source = "tfds:imagenet2012"
    config.data.batch_size = 1024
    config.data.workers = 8
    config.augment.mixup_fraction = 0.0
    config.augment.cutmix_fraction = 0.0
    config.optimizer.clipping = None
    config.train.epochs = 90.0
    config.train.ema.ema = None
    config.eval.preprocessing = "crop_resize"
    return config
