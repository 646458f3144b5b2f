"""Where images come from: files, videos, cameras, streams, watched folders, lists on stdin; arrays in Python."""

from anchorite.predict.sources.frames import LULL, Frame, Lull, Underway, Video, entry_of
from anchorite.predict.sources.images import each_source, read_image, source_name
from anchorite.predict.sources.opening import OnUnreadable, SourceConfig, Sources, file_items, open_sources
from anchorite.predict.sources.paths import VIDEO_SUFFIXES, expand_sources
from anchorite.predict.sources.videos import video_frames

__all__ = [
    "LULL",
    "VIDEO_SUFFIXES",
    "Frame",
    "Lull",
    "OnUnreadable",
    "SourceConfig",
    "Sources",
    "Underway",
    "Video",
    "each_source",
    "entry_of",
    "expand_sources",
    "file_items",
    "open_sources",
    "read_image",
    "source_name",
    "video_frames",
]
