"""Cameras and network streams: the newest frame counts, whatever the network has no time for is left out."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import cv2

from anchorite.errors import InputError
from anchorite.interrupts import HeldInterrupts
from anchorite.predict.sources.captures import frames_per_second, open_camera, open_stream, retrieve_rgb
from anchorite.predict.sources.frames import LULL, Frame, Video
from anchorite.predict.sources.paths import address_scheme

_CAMERA = re.compile(r"(?:camera:)?([0-9]{1,3})")
_STREAMS = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp"})
_SECRET = re.compile(r"(?<=//)[^/@]*@")


def is_live(source: str) -> bool:
    """Whether a word means a camera (camera:0, or a number that is no file) or a network stream (rtsp://...)."""
    return address_scheme(source) in _STREAMS or bool(_CAMERA.fullmatch(source) and not Path(source).exists())


class LiveSource:
    """A camera or stream, open and waiting; raises what opening it raises.

    name: as given, but without user and password. num_dropped: frames that came and were not looked at, because a
    newer one was there before the network was free. Close it, if `frames` is not used to the end.
    """

    def __init__(self, source: str) -> None:
        camera = _CAMERA.fullmatch(source)
        self.name = f"camera:{int(camera[1])}" if camera else _SECRET.sub("", source)
        self._capture = open_camera(int(camera[1]), self.name) if camera else open_stream(source, self.name)
        self.num_dropped = 0

    def close(self) -> None:
        """Give the camera back."""
        self._capture.release()

    def frames(self, stop: threading.Event, every: int = 1) -> Generator[Any, None, None]:
        """Frames until `stop` is set, each followed by a `LULL`; never waits with one for the next.

        every: look only at each so-many-th of those that come. Raises InputError when no more come.
        """
        video = Video(self.name, frames_per_second(self._capture), is_live=True, every=every)
        newest = _Newest()
        thread = threading.Thread(target=self._read, args=(video, newest, stop), name="anchorite-camera", daemon=True)
        try:
            with HeldInterrupts():
                thread.start()
            while (frame := newest.take(stop)) is not None:
                yield frame
                yield LULL
            if newest.error is not None:
                raise newest.error
        finally:
            stop.set()
            with HeldInterrupts():
                if thread.is_alive():
                    thread.join()
            self.num_dropped += newest.num_dropped
            self.close()

    def _read(self, video: Video, newest: _Newest, stop: threading.Event) -> None:
        """What the thread does; an error ends it, and is told where frames are taken."""
        number, error = 0, None
        try:
            while not stop.is_set():
                image = None
                if self._capture.grab():
                    if number % video.every:
                        number += 1
                        continue
                    image = retrieve_rgb(self._capture)
                if stop.is_set():
                    break
                if image is None:
                    error = InputError(f"{self.name}: gave no more pictures after {number}. Check it, and start anew")
                    break
                seconds = max(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, number / video.fps)
                newest.put(Frame.of(image, video, number, seconds))
                number += 1
        except BaseException as raised:
            newest.end(raised)
        else:
            newest.end(error)


class _Newest:
    """Room for one frame: a newer one takes the place of one that nobody took."""

    def __init__(self) -> None:
        self.num_dropped = 0
        self.error: BaseException | None = None
        self._frame: Frame | None = None
        self._ended = False
        self._changed = threading.Condition()

    def put(self, frame: Frame) -> None:
        with self._changed:
            self.num_dropped += self._frame is not None
            self._frame = frame
            self._changed.notify()

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self.error, self._ended = error, True
            self._changed.notify()

    def take(self, stop: threading.Event) -> Frame | None:
        """The newest frame, once there is one that was not taken; None after the last, and when stopped."""
        with self._changed:
            while self._frame is None and not self._ended and not stop.is_set():
                self._changed.wait(timeout=0.1)
            frame, self._frame = self._frame, None
            return frame
