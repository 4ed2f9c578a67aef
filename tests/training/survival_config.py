"""The run whose survival is tested: seconds long, with everything random switched on."""

import ml_collections

from tests.training import micro


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = micro.run_config()
    config.model.drop_rate = 0.2
    config.model.stochdepth_rate = 0.2
    config.augment.cutmix_fraction = 0.5
    config.augment.randaugment_layers = 1
    config.augment.randaugment_magnitude = 5
    config.train.steps = 40  # 22 steps are an epoch
    config.train.log_every = 1
    config.train.writers = (
        "json",
        "tensorboard",
        "console",
        "tests.training.hooks:StepHook",
    )
    config.eval.every = 20
    config.checkpoint.every = 5
    config.checkpoint.keep = 2
    return config
