"""How the original family names, by the number of the part in its list, the tensors that we name by their role."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anchorite.model.table import FIRST_LEVEL, plan

_BLOCK_TENSORS = {"convolution": "conv", "norm": "bn"}


def foreign_names(own_name: str, size: str) -> tuple[str, ...]:
    """The foreign tensors that make up our tensor `own_name` of a detector of `size`; see `joined`.

    There are two for the entry of a cross-stage block (its two branches, "cv1" and "cv2") and one for all others.
    Raises KeyError for a name that no detector has.
    """
    path = own_name.split(".")
    if path[0] == "head" and path[1] == "predictors":
        return (f"model.{_head_index(size)}.m.{int(path[2][1:]) - FIRST_LEVEL}.{path[3]}",)
    indices = _part_indices(size)
    length = next((n for n in (3, 2) if ".".join(path[:n]) in indices), None)
    if length is None:
        raise KeyError(own_name)
    prefix = f"model.{indices['.'.join(path[:length])]}"
    *inner, layer, tensor = path[length:]
    return tuple(f"{prefix}{place}.{_BLOCK_TENSORS[layer]}.{tensor}" for place in _places(inner))


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Our tensor of the foreign ones that `foreign_names` names, in that order: joined along the output channels."""
    # Batch counters have no channels; branches that run together have counted the same.
    return torch.cat(list(tensors)) if tensors[0].ndim else tensors[0]


def foreign_anchors_name(size: str) -> str:
    """The foreign buffer of anchors, (L, A, 2) in cells, which no tensor of ours holds: we keep an `AnchorSet`."""
    return f"model.{_head_index(size)}.anchors"


def foreign_sources(size: str) -> dict[int, list[int] | int]:
    """By number of a foreign part, the numbers of those it takes its input from; -1 is the one before it."""
    last, indices = plan(size).last_level, _part_indices(size)
    sources: dict[int, list[int] | int] = dict.fromkeys(range(_head_index(size)), -1)
    outputs = [indices[f"neck.top_down.p{FIRST_LEVEL}"]]
    for level in range(FIRST_LEVEL, last):
        # The concatenation lies between the upsampling or the downsampling, and the merge.
        sources[indices[f"neck.top_down.p{level}"] - 1] = [-1, indices[f"backbone.stage{level}.cross_stage"]]
        sources[indices[f"neck.bottom_up.p{level + 1}"] - 1] = [-1, indices[f"neck.lateral.p{level + 1}"]]
        outputs.append(indices[f"neck.bottom_up.p{level + 1}"])
    sources[_head_index(size)] = outputs
    return sources


def _places(inner: list[str]) -> tuple[str, ...]:
    """Where a convolution block lies within its foreign part; ours is `inner`."""
    match inner:
        case []:
            return ("",)
        case ["entry"]:
            return (".cv1", ".cv2")
        case ["merge"]:
            return (".cv3",)
        case ["bottlenecks", number, "mix"]:
            return (f".m.{number}.cv1",)
        case ["bottlenecks", number, "look"]:
            return (f".m.{number}.cv2",)
        case ["narrow"]:
            return (".cv1",)
        case ["combine"]:
            return (".cv2",)
        case _:
            raise KeyError(".".join(inner))


def _part_indices(size: str) -> dict[str, int]:
    """The foreign number of every part of backbone and neck.

    The backbone counts the stem 0, then two parts a stage, then the pool. On the way down each step has four parts
    (narrow, upsample, concatenate, merge), on the way up three (downsample, concatenate, merge).
    """
    last = plan(size).last_level
    indices = {"backbone.stem": 0, "backbone.pool": 2 * last - 1}
    for level in range(2, last + 1):
        indices[f"backbone.stage{level}.downsample"] = 2 * level - 3
        indices[f"backbone.stage{level}.cross_stage"] = 2 * level - 2
    index = 2 * last
    for level in range(last, FIRST_LEVEL, -1):
        indices[f"neck.lateral.p{level}"] = index
        indices[f"neck.top_down.p{level - 1}"] = index + 3
        index += 4
    for level in range(FIRST_LEVEL, last):
        indices[f"neck.downsample.p{level}"] = index
        indices[f"neck.bottom_up.p{level + 1}"] = index + 2
        index += 3
    return indices


def _head_index(size: str) -> int:
    last = plan(size).last_level
    return 2 * last + 7 * (last - FIRST_LEVEL)
