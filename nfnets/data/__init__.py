"""Datasets, and batches of decoded and cropped images made from them."""

from nfnets.data.batches import EvalBatch, TrainBatch, eval_batches, train_batches
from nfnets.data.images import CropOptions, decode, preprocess_eval
from nfnets.data.pipeline import BatchIterator, HostShard
from nfnets.data.records import Dataset, Record, RecordSource, UnreadableRecordError
from nfnets.data.retries import Retries
from nfnets.data.sources import open_dataset

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
    "decode",
    "eval_batches",
    "open_dataset",
    "preprocess_eval",
    "train_batches",
]
