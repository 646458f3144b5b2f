"""Data: label formats, the one image decoder, the image store, augmentation, and the batches made of them."""

from anchorite.data.augment_config import AugmentConfig
from anchorite.data.batches import Batch, LoaderConfig, SampleKey, empty_batch
from anchorite.data.columns import RecordTable
from anchorite.data.counts import num_boxes
from anchorite.data.decode import decode_image
from anchorite.data.device_loader import Capacity, DeviceLoader
from anchorite.data.device_store import DeviceStore
from anchorite.data.fingerprint import dataset_fingerprint, split_fingerprints
from anchorite.data.flat import flat_labels, training_sides
from anchorite.data.formats import open_dataset
from anchorite.data.host_loader import HostLoader, make_loader
from anchorite.data.index import Adjustment, DatasetIndex, LeftOut, Record, without_images
from anchorite.data.letterbox import LetterboxTransform, letterbox, letterbox_transform, rectangular_size
from anchorite.data.letterboxed import LetterboxedBatch, letterboxed_batches
from anchorite.data.loader import Loader, open_loader
from anchorite.data.samples import TrainSamples
from anchorite.data.shards.checking import StreamedImages, readable
from anchorite.data.shards.pool import StreamSamples, make_stream_loader
from anchorite.data.shards.split import ShardedSplit
from anchorite.data.store import ImageStore, StoreMode

__all__ = [
    "Adjustment",
    "AugmentConfig",
    "Batch",
    "Capacity",
    "DatasetIndex",
    "DeviceLoader",
    "DeviceStore",
    "HostLoader",
    "ImageStore",
    "LeftOut",
    "LetterboxTransform",
    "LetterboxedBatch",
    "Loader",
    "LoaderConfig",
    "Record",
    "RecordTable",
    "SampleKey",
    "ShardedSplit",
    "StoreMode",
    "StreamSamples",
    "StreamedImages",
    "TrainSamples",
    "dataset_fingerprint",
    "decode_image",
    "empty_batch",
    "flat_labels",
    "letterbox",
    "letterbox_transform",
    "letterboxed_batches",
    "make_loader",
    "make_stream_loader",
    "num_boxes",
    "open_dataset",
    "open_loader",
    "readable",
    "rectangular_size",
    "split_fingerprints",
    "training_sides",
    "without_images",
]
