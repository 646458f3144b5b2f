"""Where detections go: annotated images and videos, YOLO rows, JSON, COCO results, crops."""

from anchorite.predict.output.background import BackgroundWriter
from anchorite.predict.output.kinds import Kind, Save
from anchorite.predict.output.names import fresh_folder
from anchorite.predict.output.writer import PredictionWriter, yolo_lines

__all__ = ["BackgroundWriter", "Kind", "PredictionWriter", "Save", "fresh_folder", "yolo_lines"]
