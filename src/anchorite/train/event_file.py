"""An event file of TensorBoard's, written record by record with the package's own parts for it.

Not by its ready-made writer: that has a thread, in which an error of the disk is lost, and with which the loader's
processes would have to be forked.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchorite.errors import InputError

_PATTERN = "*.tfevents.*"


def need_tensorboard() -> None:
    """InputError with the remedy where the package tensorboard is not installed."""
    try:
        importlib.import_module("tensorboard.compat.proto.event_pb2")
    except ImportError as error:
        raise InputError(
            f"TensorBoard's events need the package tensorboard ({error}); install it: "
            "pip install 'anchorite[tensorboard]'"
        ) from error


class EventFile:
    """A new event file in a folder, made if need be; every event is handed to the system as it is added.

    first_step: points of this step and later ones that other files of the folder have are taken back, for the run they
    came from was gone on with from before them.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob(_PATTERN)))
        # Read in the order of names: seconds decide, and within a second how many files there were.
        name = f"events.out.tfevents.{int(time.time()):010d}.{number:04d}.{socket.gethostname()}.{os.getpid()}"
        self._event_pb2: Any = event_pb2
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._add(0, file_version="brain.Event:2")
        if number:
            self._add(first_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """A point of each of some curves, by name; kept as float32."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.add(Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]), step)

    def add_jpeg(self, tag: str, jpeg: bytes, size_hw: tuple[int, int], step: int) -> None:
        """A picture."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width = size_hw
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=jpeg)
        self.add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def add(self, summary: Any, step: int) -> None:
        """Any summary."""
        self._add(step, summary=summary)

    def close(self) -> None:
        """Nothing can be added after it."""
        self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        event = self._event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())
        self._records.flush()
