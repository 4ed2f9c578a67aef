"""Datasets and batches of decoded, cropped images."""

from nfnets.data.batches import (
    EvalBatch,
    TrainBatch,
    check_sampling,
    eval_batches,
    train_batches,
)
from nfnets.data.checks import check_files
from nfnets.data.images import CropOptions, decode, preprocess_eval
from nfnets.data.layout import HostShard
from nfnets.data.pipeline import BatchIterator
from nfnets.data.sources.base import Dataset, Record, RecordSource, UnreadableRecordError
from nfnets.data.sources.registry import open_dataset
from nfnets.data.sources.retries import Retries

__all__ = [
    "BatchIterator",
    "CropOptions",
    "Dataset",
    "EvalBatch",
    "HostShard",
    "Record",
    "RecordSource",
    "Retries",
    "TrainBatch",
    "UnreadableRecordError",
    "check_files",
    "check_sampling",
    "decode",
    "eval_batches",
    "open_dataset",
    "preprocess_eval",
    "train_batches",
]
