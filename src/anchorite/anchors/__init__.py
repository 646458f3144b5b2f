"""Anchors: the reference sizes, the codec between logits and boxes, and fitting anchors to a data set."""

from anchorite.anchors.anchor_set import AnchorSet
from anchorite.anchors.codec import decode_boxes, decode_level, encode_boxes

__all__ = ["AnchorSet", "decode_boxes", "decode_level", "encode_boxes"]
