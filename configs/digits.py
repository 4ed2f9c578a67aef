"""scikit-learn's handwritten digits, the built-in data: no network, no GPU.

    python train.py --config=configs/digits.py --workdir=runs/digits

trains a small NFNet on 1,437 scans of 8x8 pixels, upscaled to 32x32, and tests on 360.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.model.name = "nfnet_tiny"
    config.model.compute_dtype = "float32"
    config.data.source = "digits"
    config.data.batch_size = 64
    config.data.flip = False  # a mirrored digit is no digit
    config.data.min_area = 0.5
    config.augment.mixup_fraction = 0.5
    config.augment.cutmix_fraction = 0.0
    config.optimizer.clipping = 0.08
    config.train.epochs = 40.0
    config.train.warmup_epochs = 2.0
    config.train.ema.ema = 0.99
    config.eval.every_epochs = 5.0
    config.eval.batch_size = 120
    config.eval.preprocessing = "resize"  # a digit fills its frame
    config.checkpoint.every_epochs = 5.0
    return config
