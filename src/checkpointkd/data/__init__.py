"""Data sets by name, their splits, views, and batches of images."""

from ..config import DataConfig
from .cache import cache_dir
from .cifar import superclasses
from .datasets import Data, DataSet
from .images import Batch, EpochLoader, Images, eval_batch_size
from .in_memory import InMemoryBatches, InMemoryImages
from .load import DATASETS, config_like, config_of, load_data, load_test
from .splits import stratified
from .streaming import StreamingImages
from .views import Views

__all__ = [
    "DATASETS",
    "Batch",
    "Data",
    "DataConfig",
    "DataSet",
    "EpochLoader",
    "Images",
    "InMemoryBatches",
    "InMemoryImages",
    "StreamingImages",
    "Views",
    "cache_dir",
    "config_like",
    "config_of",
    "eval_batch_size",
    "load_data",
    "load_test",
    "stratified",
    "superclasses",
]
