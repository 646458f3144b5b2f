"""Weighted boxes fusion and the joining of windows as readable loops: what the fast ones are held against."""

from __future__ import annotations

from tests.boxes.slow_nms import slow_nms


def slow_fusion(boxes, scores, class_ids, model_ids, weights, iou_threshold):
    """The steps of arXiv:1910.13302, section 3.1, box after box, every mean taken anew of all boxes of its cluster.

    Returns (box, score, class) of each fused box, best first.
    """
    trust = [weights[model] for model in model_ids]
    weighted = [weight * score for weight, score in zip(trust, scores, strict=True)]
    clusters, fused = [], []
    for i in sorted(range(len(scores)), key=lambda i: -weighted[i]):
        rivals = [c for c in range(len(fused)) if class_ids[clusters[c][0]] == class_ids[i]]
        best = max(rivals, key=lambda c: iou(fused[c], boxes[i]), default=None)
        if best is not None and iou(fused[best], boxes[i]) > iou_threshold:
            clusters[best].append(i)
            fused[best] = mean_box([boxes[j] for j in clusters[best]], [weighted[j] for j in clusters[best]])
        else:
            clusters.append([i])
            fused.append(boxes[i])
    results = []
    for box, cluster in zip(fused, clusters, strict=True):
        count = sum(trust[j] for j in cluster)
        confidence = sum(weighted[j] for j in cluster) / count
        results.append((box, confidence * min(count, sum(weights)) / sum(weights), class_ids[cluster[0]]))
    return sorted(results, key=lambda one: -one[1])


def slow_join(boxes, scores, class_ids, is_cut, iou_threshold, covered, share):
    """Whole boxes by NMS; then each cut box against the whole ones; those left by NMS, then from the largest down."""

    def rival(a, b):
        return class_ids is None or class_ids[a] == class_ids[b]

    def hides(over, under):
        return rival(over, under) and overlap(boxes[over], boxes[under]) > covered * area(boxes[under])

    def suppressed(indices):
        classes = None if class_ids is None else [class_ids[i] for i in indices]
        kept = slow_nms([boxes[i] for i in indices], [scores[i] for i in indices], classes, iou_threshold, len(indices))
        return [indices[k] for k in kept]

    whole = suppressed([i for i in range(len(scores)) if not is_cut[i]])
    cut = [i for i in range(len(scores)) if is_cut[i]]
    cut = [i for i in cut if not any(hides(w, i) and scores[w] >= share * scores[i] for w in whole)]
    parts = []
    for i in sorted(suppressed(cut), key=lambda i: -area(boxes[i])):
        if not any(hides(p, i) for p in parts):
            parts.append(i)
    return sorted([*whole, *parts], key=lambda i: (-scores[i], i))


def mean_box(boxes, weights):
    if sum(weights) == 0:
        return boxes[0]
    return [sum(w * box[edge] for box, w in zip(boxes, weights, strict=True)) / sum(weights) for edge in range(4)]


def iou(a, b):
    union = area(a) + area(b) - overlap(a, b)
    return overlap(a, b) / union if union > 0 else 0.0


def overlap(a, b):
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def area(box):
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
