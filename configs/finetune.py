"""Fine-tuning of published or own weights on your images in folders, on one GPU.

    python train.py --config=configs/finetune.py --workdir=runs/mine \
        --config.init_from=nfnet_f0 --config.data.source=folder:PATH

The classifier is re-initialized if the number of classes differs. Without
--config.init_from, training starts from random weights, which needs many more images
(configs/imagefolder.py).
"""

import ml_collections

from configs import imagefolder


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = imagefolder.get_config()
    config.model.stochdepth_rate = 0.1
    config.data.batch_size = 32
    config.data.min_area = 0.3
    config.augment.mixup_fraction = 0.0
    config.augment.cutmix_fraction = 0.5
    config.optimizer.weight_decay = 1e-5
    config.optimizer.head_multiplier = 10.0  # it is new
    config.optimizer.layer_decay = 0.9
    config.train.epochs = 20.0
    config.train.warmup_epochs = 1.0
    config.train.learning_rate = 0.04  # x 32 / 256 = 0.005
    config.train.ema.ema = 0.999
    return config
