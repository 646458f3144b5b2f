"""Label formats: YOLO, COCO and Pascal VOC, recognised by looking and read into a `DatasetIndex`."""

from anchorite.data.formats.recognise import FormatName, open_dataset

__all__ = ["FormatName", "open_dataset"]
