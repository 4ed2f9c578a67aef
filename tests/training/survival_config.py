"""The run whose survival is tested: seconds long, with everything random switched on."""

import ml_collections

from configs import digits
from tests.training.test_step import MICRO


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = digits.get_config()
    config.model.overrides.update(MICRO)
    config.model.drop_rate = 0.2
    config.model.stochdepth_rate = 0.2
    config.augment.cutmix_fraction = 0.5
    config.augment.randaugment_layers = 1
    config.augment.randaugment_magnitude = 5
    config.data.image_size = 16
    config.eval.image_size = 16
    config.data.batch_size = 64  # 22 steps are an epoch
    config.eval.batch_size = 100
    config.train.steps = 40
    config.train.warmup_steps = 1
    config.train.log_every = 1
    config.eval.every = 20
    config.checkpoint.every = 5
    config.checkpoint.keep = 2
    return config
