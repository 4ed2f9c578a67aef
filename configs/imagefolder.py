"""Your own images in folders, from random weights, on one GPU.

    python train.py --config=configs/imagefolder.py --workdir=runs/mine \
        --config.data.source=folder:PATH

PATH/train/CLASS/ and PATH/val/CLASS/ hold the images; the folders' names are the classes.
Without val/, add --config.data.eval_fraction=0.1. `nfnets check PATH` examines the images.
100 epochs suit ten thousand images or more.
"""

import ml_collections

from nfnets.training.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default_config()
    config.model.name = "nfnet_f0"
    config.model.compute_dtype = "auto"
    config.data.source = "folder:data"
    config.data.eval_split = "val"
    config.data.batch_size = 64
    config.optimizer.clipping = 0.1  # larger at smaller batches
    config.train.epochs = 100.0
    config.train.ema.ema = 0.9999
    config.eval.batch_size = 64
    return config
