"""Non-maximum suppression as a readable loop: what the fast one is held against."""

from __future__ import annotations


def slow_nms(boxes, scores, class_ids, iou_threshold, max_detections):
    """The rule, one box at a time, in Python floats."""
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        rivals = [k for k in kept if class_ids is None or class_ids[k] == class_ids[index]]
        if all(not overlaps_too_much(boxes[k], boxes[index], iou_threshold) for k in rivals):
            kept.append(index)
    return kept[:max_detections]


def overlaps_too_much(a, b, iou_threshold):
    def area(x0, y0, x1, y1):
        return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)

    overlap = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return overlap > iou_threshold * (area(*a) + area(*b) - overlap)
