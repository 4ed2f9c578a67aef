"""Every field of a run, with its unit and default. The other configs give differences only.

A field that is `None` here follows from the model's name (see
`nfnets/models/variants.py`) after command-line overrides, unless its comment says
otherwise. `python train.py --config=FILE --config.section.field=VALUE` overrides any of
them; `None` is a value too. A misspelt field is an error.
"""

import types

import ml_collections
from ml_collections import config_dict


def _optional(
    kind: type | types.UnionType, value: object = None
) -> config_dict.FieldReference:
    """A field that holds a `kind` or None."""
    return config_dict.FieldReference(value, field_type=kind)


def get_config() -> ml_collections.ConfigDict:
    """Returns the locked default configuration."""
    config = ml_collections.ConfigDict()
    # Decides initial weights, data order, crops, augmentation, dropout.
    config.seed = 0
    # Start from these weights (a .safetensors file) instead of random ones; None: random.
    config.init_from = _optional(str)

    model = config.model = ml_collections.ConfigDict()
    model.name = "nfnet_f0"  # `nfnets.list_models()`
    model.num_classes = _optional(int)  # None: as many as the dataset has
    model.drop_rate = _optional(float)  # dropout before the classifier, in [0, 1)
    model.stochdepth_rate = _optional(float)  # of the last block, in [0, 1)
    model.activation = _optional(str)  # `nfnets.models.activations.names()`
    # Any field of `ModelSpec` or `BlockSpec`, for variants that no table has: alpha,
    # widths, depths, group_width, ...
    model.overrides = ml_collections.ConfigDict()
    # Batch normalisation (ResNets only) over the batch of all devices, not of each.
    model.sync_batch_norm = False
    # Recompute activations in the backward pass instead of keeping them: none (keep all),
    # block (keep the blocks' inputs), stage (keep the stages' inputs).
    model.remat = "none"
    model.compute_dtype = "bfloat16"  # of activations; parameters are always float32

    data = config.data = ml_collections.ConfigDict()
    # digits | synthetic | folder:PATH | tfds:NAME[:VERSION]
    data.source = "digits"
    data.dir = _optional(str)  # of TFDS; None: TFDS's own default
    data.train_split = "train"  # tfds: any TFDS split, as train[:99%]; folder: a subfolder
    data.eval_split = "validation"  # tfds: likewise; folder: a subfolder (default `val`)
    data.batch_size = 4096  # images per step, over all devices of all hosts
    data.image_size = _optional(int)  # training crops, pixels
    data.min_area = 0.08  # random crops cover at least this share of the image, in (0, 1]
    data.max_area = 1.0  # ... and at most this
    data.min_aspect = 3 / 4  # width / height of a random crop, at least
    data.max_aspect = 4 / 3  # ... and at most
    data.flip = True  # mirror half of the training images
    # That read and decode, per worker process (or in this process); None: two per core.
    data.threads = _optional(int)
    data.workers = 0  # processes that read and decode; 0: threads of this process
    data.prefetch = 2  # batches ready beyond the one in use
    data.max_bad_records = 100  # more unreadable training records stop the run

    augment = config.augment = ml_collections.ConfigDict()
    # Applied on the device, in this order; the paper's. Normalisation follows.
    augment.order = ("mix", "distort", "cutout")
    augment.mixup_alpha = 0.2  # both parameters of MixUp's Beta distribution, > 0
    augment.mixup_fraction = 0.5  # share of the pairs (2i, 2i + 1) that MixUp blends
    augment.cutmix_alpha = 1.0  # both parameters of CutMix's Beta distribution, > 0
    augment.cutmix_fraction = 0.5  # share of the pairs that CutMix pastes
    augment.randaugment_layers = _optional(int)  # operations per image; 0: none
    augment.randaugment_magnitude = _optional(int)  # 0 to 30; 10 is the nominal maximum
    augment.autoaugment = False  # the published ImageNet policy, in place of RandAugment
    augment.cutout_size = 0  # side of one grey square per image, pixels; 0: none

    optimizer = config.optimizer = ml_collections.ConfigDict()
    optimizer.name = "sgd"  # sgd | adam | adamw | rmsprop | lamb
    optimizer.momentum = 0.9  # sgd and rmsprop
    optimizer.nesterov = True  # sgd and rmsprop
    optimizer.b1 = 0.9  # adam, adamw, lamb
    optimizer.b2 = 0.999  # adam, adamw, lamb; decay of rmsprop's mean square
    optimizer.epsilon = 1e-8  # adam, adamw, lamb, rmsprop: added to the denominator
    optimizer.weight_decay = _optional(float)  # not on gains, biases, skip gains
    optimizer.clipping = _optional(float, 0.01)  # AGC's lambda; None: no AGC
    optimizer.clip_eps = 1e-3  # AGC's floor of the weight norm
    optimizer.clip_classifier = False  # AGC on the classifier's weight too
    optimizer.head_multiplier = 1.0  # of the classifier's learning rate
    optimizer.layer_decay = 1.0  # factor on the rate per block below the classifier
    # Regular expressions; parameters whose path (`module:name`) one of them finds stay.
    optimizer.frozen = ()
    optimizer.clip_norm = _optional(float)  # clip by global norm, before AGC; None: no

    train = config.train = ml_collections.ConfigDict()
    train.steps = _optional(int)  # length of the run: steps ...
    train.epochs = _optional(float, 360.0)  # ... or epochs, where steps is None
    train.learning_rate = 0.1  # peak, per 256 images: multiplied by batch_size / 256
    train.warmup_steps = _optional(int)  # linear from 0: steps ...
    train.warmup_epochs = 5.0  # ... or epochs, where warmup_steps is None
    train.label_smoothing = 0.1  # in [0, 1)
    # Images per device per pass; None: all at once; auto: as many as the memory holds.
    train.microbatch = _optional(int | str)
    # Exponential moving averages of the parameters: name -> decay, with warm-up
    # min(decay, (1 + step) / (10 + step)). `ema` is the one whose accuracy is reported.
    # None: not kept.
    train.ema = ml_collections.ConfigDict({"ema": _optional(float, 0.99999)})
    train.log_every = _optional(int)  # steps; None: about 200 times in the run
    train.log_layers = False  # AGC's figures layer by layer in the metrics
    # When a loss or a gradient is NaN or infinite: stop, or rollback: go on from the last
    # checkpoint with the batches after it left out.
    train.on_nonfinite = "stop"
    train.max_rollbacks = 3  # in the whole run; one more stops it

    # Sharpness-aware minimisation (F6's recipe: rho 0.05).
    sam = config.sam = ml_collections.ConfigDict()
    sam.rho = _optional(float)  # length of the ascent step, > 0; None: no SAM
    sam.batch_fraction = 0.2  # of the batch, whose gradient is ascended, in (0, 1]
    # global: one ascent step from all devices' gradients; replica: each device its own.
    sam.normalize = "global"

    evaluation = config.eval = ml_collections.ConfigDict()
    evaluation.every = _optional(int)  # steps between evaluations ...
    evaluation.every_epochs = 1.0  # ... or epochs, where every is None
    evaluation.batch_size = _optional(int)  # over all devices; None: as in training
    evaluation.image_size = _optional(int)  # pixels; None: the model's test size
    evaluation.preprocessing = "resize_crop_32"  # or crop_resize, resize

    checkpoint = config.checkpoint = ml_collections.ConfigDict()
    checkpoint.every = _optional(int)  # steps between checkpoints ...
    checkpoint.every_epochs = 1.0  # ... or epochs, where every is None
    checkpoint.keep = 3  # newest
    checkpoint.keep_best = 1  # by eval/top1, besides the newest

    config.lock()
    # A config file may add keys to these two: averages by name, fields of a model.
    train.ema.unlock()
    model.overrides.unlock()
    return config
