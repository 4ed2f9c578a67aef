"""NF-RegNet-B0 on ImageNet, with the published recipe.

    python train.py --config=configs/nf_regnet_b0.py --workdir=runs/b0 --config.data.dir=DIR

360 epochs at batch 1024. Image sizes, dropout and weight decay follow from the model's
name, so that --config.model.name=nf_regnet_b3 gives B3's. The learning rate ends at 0,
that of the published schedule at 0.001.
"""

import ml_collections

from nfnets.training.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default_config()
    config.model.name = "nf_regnet_b0"
    config.model.compute_dtype = "float32"
    config.data.source = "tfds:imagenet2012"
    config.data.batch_size = 1024
    config.data.workers = 8
    config.data.apply_exif = False  # as the published weights
    config.optimizer.clipping = None
    config.train.epochs = 360.0
    config.eval.preprocessing = "crop_resize"
    return config
