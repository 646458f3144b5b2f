"""Data: label formats, the one image decoder, the image store, augmentation, and the batches made of them."""

from anchorite.data.augment import AugmentConfig
from anchorite.data.batches import Batch, EpochBatches, LetterboxedBatch, LoaderConfig, empty_batch, letterboxed_batches
from anchorite.data.dataset import (
    Adjustment,
    DatasetIndex,
    LeftOut,
    Record,
    RecordTable,
    Split,
    as_split,
    dataset_fingerprint,
    without_images,
)
from anchorite.data.device import DevicePainter, DeviceStore
from anchorite.data.formats import open_dataset
from anchorite.data.host_loader import HostPainter
from anchorite.data.images import LetterboxTransform, decode_image, letterbox, letterbox_transform, rectangular_size
from anchorite.data.loader import Loader, open_loader
from anchorite.data.samples import SampleConfig, SampleKey, TrainSamples
from anchorite.data.shards.split import ShardedSplit
from anchorite.data.shards.stream import StreamBatches, StreamSamples
from anchorite.data.store import ImageStore, StoreMode

__all__ = [
    "Adjustment",
    "AugmentConfig",
    "Batch",
    "DatasetIndex",
    "DevicePainter",
    "DeviceStore",
    "EpochBatches",
    "HostPainter",
    "ImageStore",
    "LeftOut",
    "LetterboxTransform",
    "LetterboxedBatch",
    "Loader",
    "LoaderConfig",
    "Record",
    "RecordTable",
    "SampleConfig",
    "SampleKey",
    "ShardedSplit",
    "Split",
    "StoreMode",
    "StreamBatches",
    "StreamSamples",
    "TrainSamples",
    "as_split",
    "dataset_fingerprint",
    "decode_image",
    "empty_batch",
    "letterbox",
    "letterbox_transform",
    "letterboxed_batches",
    "open_dataset",
    "open_loader",
    "rectangular_size",
    "without_images",
]
