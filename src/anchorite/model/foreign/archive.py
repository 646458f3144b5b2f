"""The zip around a checkpoint: where its records lie, under limits, nothing unpacked.

What torch.save writes is a zip whose records are stored as they are, so a record is a stretch of the file and takes no
more memory than the file is long; a compressed one is refused before it is read.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from anchorite.errors import InputError, UnsafeFileError
from anchorite.model.foreign.allowed import shown

MAX_FILE_BYTES = 4 << 30
"""Longest file that is looked at: the largest size with its optimizer's state in float32 takes half of it."""
MAX_PICKLE_BYTES = 16 << 20
"""Longest pickle within it; that of size n takes 88 kB."""
MAX_RECORDS = 20_000

_AGAIN = "copy or download it again"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_ENCRYPTED, _UTF8_NAME = 0x1, 0x800  # flags of an entry
_CODE_RECORDS = ("code/", "constants.pkl")


@dataclass(frozen=True)
class Record:
    """A stretch of the file: its first byte, how many there are, and their CRC-32 as the zip states it."""

    first_byte: int
    num_bytes: int
    crc: int


class Archive:
    """The records of a checkpoint by their names, without the folder that all of them lie in.

    Raises InputError when the file is none or is damaged, and UnsafeFileError when it is of a format that runs code,
    or one of its records would take more memory than the file is long.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._num_bytes = file.seek(0, io.SEEK_END)
        _refuse_other_formats(file, self._num_bytes)
        try:
            with zipfile.ZipFile(file) as opened:
                entries = opened.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error) as error:
            raise InputError(f"cut off or damaged ({shown(str(error))}); {_AGAIN}") from error
        _refuse_code(entries)
        _check_entries(entries, self._num_bytes)
        self._entries = _within_their_folder(entries)
        self._records: dict[str, Record] = {}
        if "byteorder" in self._entries and self.read("byteorder", 16).strip() != b"little":
            raise InputError("was saved on a big-endian machine; save it again on a little-endian one")

    def record(self, name: str) -> Record | None:
        """Where a record lies, or None when there is no such."""
        if name not in self._entries:
            return None
        if name not in self._records:
            self._records[name] = self._located(self._entries[name])
        return self._records[name]

    def read(self, name: str, limit: int) -> bytes:
        """A record of at most `limit` bytes; UnsafeFileError for more, InputError when it is missing or damaged."""
        record = self.record(name)
        if record is None:
            raise InputError(f"a zip without {name}, so no checkpoint; give a .pt file of the original family")
        if record.num_bytes > limit:
            raise UnsafeFileError(f"its {name} takes {record.num_bytes} bytes, more than the {limit} that are read")
        self._file.seek(record.first_byte)
        content = self._file.read(record.num_bytes)
        if len(content) != record.num_bytes or zlib.crc32(content) != record.crc:
            raise InputError(f"its {name} is damaged: its checksum does not fit; {_AGAIN}")
        return content

    def _located(self, entry: zipfile.ZipInfo) -> Record:
        """Where the bytes of an entry begin, behind a header of their own that must say the same as the directory."""
        self._file.seek(entry.header_offset)
        header = self._file.read(_LOCAL_HEADER.size)
        if len(header) == _LOCAL_HEADER.size:
            signature, _, _, method, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            name = self._file.read(name_length)
            first_byte = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            agrees = signature == b"PK\x03\x04" and method == zipfile.ZIP_STORED
            inside = first_byte + entry.file_size <= self._num_bytes
            encoding = "utf-8" if entry.flag_bits & _UTF8_NAME else "cp437"
            if agrees and inside and name == entry.orig_filename.encode(encoding):
                return Record(first_byte, entry.file_size, entry.CRC)
        raise InputError(f"damaged: no record lies where {shown(entry.filename)} should; {_AGAIN}")


def _refuse_other_formats(file: BinaryIO, num_bytes: int) -> None:
    file.seek(0)
    start = file.read(16)
    if not start:
        raise InputError(f"is empty; {_AGAIN}")
    if num_bytes > MAX_FILE_BYTES:
        raise UnsafeFileError(f"takes {num_bytes} bytes, more than the {MAX_FILE_BYTES} that are looked at")
    if start.startswith(_LEGACY_START):
        raise UnsafeFileError(
            "in torch's format from before version 1.6, one pickle without a zip, which stays unread; "
            "where you trust it, save it again with a newer torch"
        )
    if start.startswith(_PICKLE_STARTS):
        raise UnsafeFileError(
            "a bare pickle, which could run code when read, so it stays unread; give the .pt file that torch.save wrote"
        )
    if start[8:9] == b"{":
        raise InputError("by content a safetensors file already; use it as it is")
    if not start.startswith(b"PK\x03\x04"):
        raise InputError("no checkpoint: it does not begin as a zip does; give a .pt file of the original family")


def _check_entries(entries: list[zipfile.ZipInfo], num_bytes: int) -> None:
    if len(entries) > MAX_RECORDS:
        raise UnsafeFileError(f"holds {len(entries)} records, more than the {MAX_RECORDS} that are looked at")
    for entry in entries:
        name = shown(entry.orig_filename)
        parts = entry.orig_filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or parts[0][1:] == ":" or "\0" in entry.orig_filename:
            raise UnsafeFileError(f"holds a record {name}, which leads out of it; nothing was unpacked")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise UnsafeFileError(
                f"its record {name} would grow from {entry.compress_size} to {entry.file_size} bytes, "
                "and what torch.save writes is never compressed; nothing was unpacked"
            )
        if entry.flag_bits & _ENCRYPTED:
            raise InputError(f"its record {name} is encrypted; give a file that is not")
    total = sum(entry.file_size for entry in entries)
    if total > num_bytes:
        raise UnsafeFileError(f"its records claim {total} bytes, more than the {num_bytes} of the file")


def _within_their_folder(entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    folders = {entry.filename.partition("/")[0] for entry in entries}
    if len(folders) != 1:
        raise InputError("a zip of other things than one checkpoint; give a .pt file of the original family")
    inside: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = entry.filename.partition("/")[2]
        if name in inside:
            raise InputError(f"damaged: it holds {shown(entry.filename)} twice; {_AGAIN}")
        inside[name] = entry
    return inside


def _refuse_code(entries: list[zipfile.ZipInfo]) -> None:
    if any(entry.filename.partition("/")[2].startswith(_CODE_RECORDS) for entry in entries):
        raise UnsafeFileError(
            "a TorchScript archive, which holds code; give the checkpoint that training wrote, not an exported model"
        )
