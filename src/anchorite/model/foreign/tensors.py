"""Tensors as a checkpoint describes them: a stretch of a record, sizes and strides, checked but not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anchorite.errors import InputError, UnsafeFileError
from anchorite.model.foreign.allowed import STORAGE_TYPES, Global, Kind, shown
from anchorite.model.foreign.archive import Archive, Record

MAX_DIMENSIONS = 8

ITEM_BYTES = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of a number of each type."""


@dataclass(frozen=True)
class Storage:
    """The numbers of one record."""

    dtype: str
    record: Record

    @property
    def num_items(self) -> int:
        return self.record.num_bytes // ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class View:
    """A tensor: item `offset` of a storage is its first entry, `strides` are counted in items."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def storage(archive: Archive, persistent_id: Any) -> Storage:
    """The storage that a pickle refers to, which must hold the numbers that the pickle says.

    Raises UnsafeFileError when it claims others than its record has, and InputError when it has no record.
    """
    match persistent_id:
        case ("storage", Global(kind=Kind.STORAGE_TYPE) as kind, str(key), str(), int(num_items)):
            pass
        case _:
            raise InputError("refers to data in a way that torch.save does not; give the file that torch.save wrote")
    dtype = STORAGE_TYPES[kind.name]
    record = archive.record(f"data/{key}")
    if record is None:
        raise InputError(f"damaged: it has no record data/{shown(key)}; copy or download it again")
    if record.num_bytes != num_items * ITEM_BYTES[dtype]:
        raise UnsafeFileError(
            f"claims {num_items} numbers of type {dtype} in its record data/{shown(key)}, "
            f"which has {record.num_bytes} bytes; nothing was read"
        )
    return Storage(dtype, record)


def view(arguments: tuple[Any, ...]) -> View:
    """The tensor of the arguments with which a pickle would rebuild one: storage, offset, shape, strides and more.

    Raises UnsafeFileError when it has more entries than its storage, or one outside of it.
    """
    match arguments:
        case (Storage() as stored, int(offset), tuple(shape), tuple(strides), *_):
            pass
        case _:
            raise InputError("rebuilds a tensor of other things than a storage, sizes and strides; it is damaged")
    if not len(shape) == len(strides) <= MAX_DIMENSIONS:
        raise UnsafeFileError(f"holds a tensor of {len(shape)} sizes and {len(strides)} strides; nothing was read")
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
        raise UnsafeFileError(f"holds a tensor with the sizes {_list(shape)} and strides {_list(strides)}")
    count, last = 1, offset
    for size, stride in zip(shape, strides, strict=True):
        count *= size
        last += (size - 1) * stride
    if count and (count > stored.num_items or last >= stored.num_items):
        raise UnsafeFileError(
            f"holds a tensor of {_list(shape)} entries with strides {_list(strides)} from entry {shown(str(offset))}, "
            f"but its storage has {stored.num_items}; it was not made"
        )
    return View(stored, offset, shape, strides)


def _list(numbers: tuple[Any, ...]) -> str:
    return shown(str(list(numbers[:MAX_DIMENSIONS])))
