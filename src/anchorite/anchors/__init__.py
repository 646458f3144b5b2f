"""Anchors: the reference sizes, the codec between logits and boxes, and fitting anchors to a data set."""

from anchorite.anchors.anchor_set import AnchorSet
from anchorite.anchors.codec import decode_boxes, decode_level, encode_boxes
from anchorite.anchors.fit import best_possible_recall, fit_anchors, mean_agreement

__all__ = [
    "AnchorSet",
    "best_possible_recall",
    "decode_boxes",
    "decode_level",
    "encode_boxes",
    "fit_anchors",
    "mean_agreement",
]
