"""Your own images, sorted into folders, on one GPU.

    python train.py --config=configs/imagefolder.py --workdir=runs/mine \
        --config.data.source=folder:PATH

where PATH/train/CLASS/ and PATH/val/CLASS/ hold the images. The classes are the folders'
names. From random weights; 100 epochs suit some ten thousand images or more.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.model.name = "nfnet_f0"
    config.data.source = "folder:data"
    config.data.eval_split = "val"
    config.data.batch_size = 64
    config.optimizer.clipping = 0.1  # smaller batches need less clipping
    config.train.epochs = 100.0
    config.train.ema.ema = 0.9999
    config.eval.batch_size = 64
    return config
