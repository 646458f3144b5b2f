"""Writing a `DatasetIndex` as a dataset of its own: YOLO, COCO or Pascal VOC, images copied byte for byte."""

from anchorite.data.writing.dataset import refuse_inside_dataset, write_dataset

__all__ = ["refuse_inside_dataset", "write_dataset"]
