"""Names that users choose from, on the command line, in recipes and in Python; nothing here is slow to import."""

from typing import Literal

ModelSize = Literal["n", "s", "m", "l", "x", "n6", "s6", "m6", "l6", "x6"]
WrittenFormat = Literal["yolo", "coco", "voc", "shards"]
"""Label formats that a copy of a dataset can be written in."""
FormatName = Literal[WrittenFormat, "cvat", "label-studio", "labelme", "via", "open-images", "csv", "merged"]
"""Label formats that are read; merged: a YAML of several data sets."""
ScoresUse = Literal["ignore", "as-weights"]
"""What the scores beside the boxes of a dataset are taken for."""
ExportFormat = Literal["onnx", "torch-export", "openvino"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
CompileName = Literal["auto", "on", "off"]
Change = Literal["data", "recipe", "ranks"]
"""What may differ from the run that is resumed."""
OutputKind = Literal["images", "video", "txt", "json", "jsonl", "coco", "crops"]
"""What prediction can write."""
