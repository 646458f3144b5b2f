"""A split measured by several ranks: which images each one takes, and how what they found comes together.

Legend: N detections of all images of a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anchorite.data import LeftOut, Record
from anchorite.data.batches import plan_letterboxed
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.metrics import Predictions


@dataclass(frozen=True)
class Shared:
    """How ranks share a split. stride, rectangular: of the batches that a single process would make.

    Each rank takes whole ones of these batches, so that what is found in an image is the same to the bit.
    """

    world: World = SINGLE_PROCESS
    stride: int = 32
    rectangular: bool = True

    def mine(self, records: Sequence[Record], image_size: int, batch_size: int) -> list[int]:
        """The numbers of this rank's records, in their order."""
        if not self.world.is_distributed:
            return list(range(len(records)))
        plans = plan_letterboxed(records, image_size, batch_size, self.stride, self.rectangular)
        return sorted(index for plan in plans[self.world.rank :: self.world.world_size] for index in plan.indices)

    def left_out(self, records: Sequence[Record], mine: Sequence[int], here: Sequence[LeftOut]) -> dict[int, LeftOut]:
        """By their numbers, the records that any rank has left out; here: those that this rank has, of its own."""
        number_of = {records[index].path: index for index in mine}
        told = [(number_of[one.record.path], one.reason) for one in here]
        everyone = sorted(pair for part in self.world.all_gather(told) for pair in part)
        return {number: LeftOut(records[number], reason) for number, reason in everyone}

    def together(self, numbers: Sequence[int], predictions: Sequence[Predictions]) -> dict[int, Predictions]:
        """What all ranks found, by the numbers of the records, on the first rank; nothing on the others."""
        if not self.world.is_distributed:
            return dict(zip(numbers, predictions, strict=True))
        counts = [len(found.scores) for found in predictions]
        tensors = {
            "numbers": torch.tensor(numbers, dtype=torch.int64),
            "counts": torch.tensor(counts, dtype=torch.int64),
            "boxes_xyxy": torch.from_numpy(
                np.concatenate([np.zeros((0, 4)), *(found.boxes_xyxy for found in predictions)])
            ),
            "scores": torch.from_numpy(np.concatenate([np.zeros(0), *(found.scores for found in predictions)])),
            "class_ids": torch.from_numpy(
                np.concatenate([np.zeros(0, np.int64), *(found.class_ids for found in predictions)])
            ),
        }
        gathered: dict[int, Predictions] = {}
        for part in self.world.gather_tensors(tensors):
            splits = part["counts"].tolist()
            columns = (part[name].split(splits) for name in ("boxes_xyxy", "scores", "class_ids"))
            for number, *of_image in zip(part["numbers"].tolist(), *columns, strict=True):
                gathered[number] = Predictions(*(column.numpy() for column in of_image))
        return gathered
