"""NFNet-F0 on ImageNet, with the paper's recipe (83.6% top-1 in the paper).

    python train.py --config=configs/nfnet_f0.py --workdir=runs/f0 --config.data.dir=DIR

360 epochs at batch 4096, learning rate 0.1 x 4096 / 256 = 1.6. Image sizes, dropout and
augmentation follow from the model's name, so that --config.model.name=nfnet_f3 gives F3's.
"""

import ml_collections

from nfnets.training.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default_config()  # the paper's recipe, except for these fields:
    config.model.name = "nfnet_f0"
    config.data.source = "tfds:imagenet2012"
    config.data.workers = 8
    config.data.apply_exif = False  # as the published weights
    config.augment.order = ("mix", "distort")
    config.eval.batch_size = 1024
    return config
