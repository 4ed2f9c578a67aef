"""scikit-learn's handwritten digits: the built-in data, without network or GPU.

    python train.py --config=configs/digits.py --workdir=runs/digits

trains a small NFNet on 1,437 scans of 8x8 pixels, resized to 32x32, and tests it on 360.
"""

import ml_collections

from nfnets.training.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default_config()
    config.model.name = "nfnet_tiny"
    config.model.compute_dtype = "float32"
    config.data.source = "digits"
    config.data.batch_size = 64
    config.data.flip = False  # digits are not symmetric
    config.data.min_area = 0.5
    config.augment.mixup_fraction = 0.5
    config.augment.cutmix_fraction = 0.0
    config.optimizer.clipping = 0.08
    config.train.epochs = 40.0
    config.train.warmup_epochs = 2.0
    config.train.ema.ema = 0.99
    config.eval.every_epochs = 5.0
    config.eval.batch_size = 120
    config.eval.preprocessing = "resize"  # digits fill the image
    config.checkpoint.every_epochs = 5.0
    return config
