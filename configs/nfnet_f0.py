"""NFNet-F0 on ImageNet, with the paper's recipe (83.6% top-1 in the paper).

    python train.py --config=configs/nfnet_f0.py --workdir=runs/f0 --config.data.dir=DIR

360 epochs at batch 4096. Image sizes, dropout and augmentation follow from the model's
name, so that --config.model.name=nfnet_f3 gives F3's.
"""

import ml_collections

from nfnets.training.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default_config()
    config.model.name = "nfnet_f0"
    config.model.compute_dtype = "bfloat16"
    config.data.source = "tfds:imagenet2012"
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.batch_size = 4096
    config.data.workers = 8
    config.augment.order = ("mix", "distort")
    config.augment.mixup_alpha = 0.2
    config.augment.mixup_fraction = 0.5
    config.augment.cutmix_fraction = 0.5
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 2e-5
    config.optimizer.clipping = 0.01
    config.optimizer.clip_eps = 1e-3
    config.train.epochs = 360.0
    config.train.warmup_epochs = 5.0
    config.train.learning_rate = 0.1  # x 4096 / 256 = 1.6
    config.train.label_smoothing = 0.1
    config.train.ema.ema = 0.99999
    config.eval.preprocessing = "resize_crop_32"
    config.eval.batch_size = 1024
    return config
