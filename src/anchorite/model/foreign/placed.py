"""Tensors read from where a checkpoint has them."""

from __future__ import annotations

import math
import zlib
from typing import BinaryIO

import torch
from torch import Tensor

from anchorite.errors import InputError
from anchorite.model.foreign.sandbox import TensorPlace


def read_tensor(name: str, place: TensorPlace, file: BinaryIO) -> Tensor:
    """A tensor of its own, contiguous and of the type that is stored, of the record where it lies.

    Raises InputError, naming it, when it is not all of its record, or the record is not what was stored.
    """
    dtype = getattr(torch, place.dtype)
    num_bytes = math.prod(place.shape) * dtype.itemsize
    # In every checkpoint of the family it is, and so no record takes more memory than the tensor that is wanted.
    if place.offset or not num_bytes or num_bytes != place.num_bytes:
        raise InputError(f"{name} does not fill its record of {place.num_bytes} bytes: its shape is {place.shape}")
    file.seek(place.first_byte)
    content = bytearray(file.read(num_bytes))
    if len(content) != num_bytes or zlib.crc32(content) != place.crc:
        raise InputError(f"the data of {name} is damaged: its checksum does not fit; copy or download it again")
    flat = torch.frombuffer(content, dtype=dtype)
    return flat.as_strided(place.shape, place.strides).clone(memory_format=torch.contiguous_format)
