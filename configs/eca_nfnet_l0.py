"""ECA-NFNet-L0 on ImageNet, for one GPU, after timm's RandAugment recipe.

    python train.py --config=configs/eca_nfnet_l0.py --workdir=runs/l0 --config.data.dir=DIR

Not trained here. timm's weights (eca_nfnet_l0.ra2_in1k) reach 82.6% top-1 at 288 pixels.
The exact values of their training are not published. What is: the name of the recipe, RA2,
and the image sizes (model definitions); RA2's settings for other networks, above all
RMSProp and RandAugment (training examples in timm's documentation; "ResNet strikes back",
2021, procedure B); and that RMSProp needs AGC with a factor of 0.001 to 0.005 here (release
notes of February 2021).

What differs from timm's training script: a cosine instead of a staircase of exponential
decay; no color jitter, no random erasing, no noise on RandAugment's magnitude; RMSProp's
mean square starts at 0 instead of 1; stochastic depth does not rescale the remaining
branches; evaluation images are resized without antialiasing.

Gradients are accumulated over passes of 64 images, which fits small GPUs and leaves the
result as it is. --config.train.microbatch=auto finds the largest number that fits. The
learning rate follows --config.data.batch_size.
"""

import ml_collections

from nfnets.training.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default_config()
    config.model.name = "eca_nfnet_l0"  # image sizes, RandAugment and weight decay
    config.model.compute_dtype = "auto"
    config.model.drop_rate = 0.2
    config.model.stochdepth_rate = 0.1
    config.data.source = "tfds:imagenet2012"
    config.data.batch_size = 512
    config.data.workers = 8
    config.augment.order = ("distort", "mix")
    config.augment.mixup_fraction = 1.0
    config.augment.cutmix_fraction = 0.0
    config.optimizer.name = "rmsprop"
    config.optimizer.b2 = 0.9
    config.optimizer.epsilon = 1e-3
    config.optimizer.nesterov = False
    config.optimizer.clipping = 0.002
    config.train.learning_rate = 0.016
    config.train.epochs = 300.0
    config.train.microbatch = 64
    config.train.ema.ema = 0.9999
    config.eval.batch_size = 256
    config.eval.preprocessing = "crop_square"
    return config
