"""What is written: kinds of results, and which of them suit images and which frames of videos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from anchorite.choices import OutputKind

Kind = OutputKind


@dataclass(frozen=True)
class Save:
    """The kinds of results that are written of images, and of frames of videos."""

    of_images: frozenset[Kind]
    of_frames: frozenset[Kind]

    @classmethod
    def usual(cls, is_streamed: bool = False, without: Iterable[Kind] = ()) -> Save:
        """Of images the annotated image and YOLO rows, of videos the annotated video; and one JSON.

        Where it is not known how many there will be, JSON lines in its place. without: leave these out.
        """
        record: Kind = "jsonl" if is_streamed else "json"
        left_out = frozenset(without)
        return cls(frozenset({"images", "txt", record}) - left_out, frozenset({"video", record}) - left_out)

    @classmethod
    def only(cls, kinds: Iterable[Kind]) -> Save:
        """These, of images and frames alike; a video of frames alone."""
        chosen = frozenset(kinds)
        return cls(chosen - {"video"}, chosen)

    @property
    def kinds(self) -> frozenset[Kind]:
        """All that may be written."""
        return self.of_images | self.of_frames

    def of(self, is_frame: bool) -> frozenset[Kind]:
        """What is written of a frame of a video, or of an image."""
        return self.of_frames if is_frame else self.of_images
