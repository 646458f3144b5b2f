"""Random truths and detections with everything that sets COCO tools apart, and the pycocotools oracle for them."""

from __future__ import annotations

import contextlib
import io

import numpy as np

from anchorite.metrics import Predictions, Truth


def random_truth(rng: np.random.Generator, num_boxes: int, num_classes: int, crowds: float = 0.15) -> Truth:
    """Boxes of all three sizes; some exactly on a size limit, some twice, some with an area that is not the box's."""
    lows = rng.uniform(0, 400, (num_boxes, 2))
    sides = np.exp(rng.uniform(np.log(4), np.log(300), (num_boxes, 2)))
    whole = rng.random(num_boxes) < 0.3
    lows[whole], sides[whole] = np.round(lows[whole]), rng.choice([16.0, 32.0, 96.0], (int(whole.sum()), 2))
    boxes = np.concatenate([lows, lows + sides], axis=1)
    if num_boxes > 1 and rng.random() < 0.3:
        boxes[0] = boxes[1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    areas = np.where(rng.random(num_boxes) < 0.3, areas * rng.uniform(0.2, 1.0, num_boxes), areas)
    return Truth(boxes, rng.integers(0, num_classes, num_boxes), rng.random(num_boxes) < crowds, areas)


def random_found(rng: np.random.Generator, truth: Truth, num_found: int, num_classes: int) -> Predictions:
    """Truths moved a little or not at all, plain noise and repeated boxes, with many ties among the scores."""
    noise = random_truth(rng, num_found, num_classes)
    boxes, class_ids = noise.boxes_xyxy.copy(), noise.class_ids.copy()
    if len(truth):
        source = rng.integers(0, len(truth), num_found)
        near = rng.random(num_found) < 0.7
        spread = rng.choice([0.0, 2.0, 15.0], (num_found, 1)) * rng.normal(size=(num_found, 4))
        moved = truth.boxes_xyxy[source] + spread
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        on_limit = rng.random(num_found) < 0.1  # overlaps of exactly 0.5 and 0.75
        moved[on_limit] = truth.boxes_xyxy[source][on_limit]
        share = rng.choice([0.5, 0.75], int(on_limit.sum()))
        moved[on_limit, 2] = moved[on_limit, 0] + (moved[on_limit, 2] - moved[on_limit, 0]) * share
        boxes[near], class_ids[near] = moved[near], truth.class_ids[source][near]
    strangers = rng.random(num_found) < 0.1
    class_ids[strangers] = rng.integers(0, num_classes, int(strangers.sum()))
    repeated = rng.random(num_found) < 0.1
    boxes[repeated] = boxes[rng.integers(0, max(num_found, 1), int(repeated.sum()))]
    flat = rng.random(num_found) < 0.03
    boxes[flat, 2] = boxes[flat, 0]
    scores = rng.random(num_found) if rng.random() < 0.4 else rng.integers(1, 6, num_found) / 7
    return Predictions(boxes, scores, class_ids)


def random_set(seed: int) -> tuple[list[Truth], list[Predictions], list[str]]:
    """A small data set; some seeds give an unusual kind: many detections, no truths, nothing found."""
    rng = np.random.default_rng(seed)
    num_classes = int(rng.choice([1, 2, 3, 8, 40], p=[0.3, 0.3, 0.2, 0.15, 0.05]))
    kind = seed % 12
    truths, predictions = [], []
    for _ in range(int(rng.integers(1, 6))):
        num_boxes = 0 if kind == 0 or rng.random() < 0.2 else int(rng.integers(1, 12))
        num_found = 0 if kind == 1 or rng.random() < 0.15 else int(rng.integers(1, 40))
        if kind == 2:
            num_found = int(rng.integers(101, 260))
        truths.append(
            random_truth(rng, num_boxes, num_classes, crowds=0.0 if kind == 3 else 0.9 if kind == 4 else 0.15)
        )
        predictions.append(random_found(rng, truths[-1], num_found, num_classes if kind != 2 else 1))
    return truths, predictions, [f"class {k}" for k in range(num_classes)]


def pycocotools_evaluation(truths: list[Truth], predictions: list[Predictions], class_names: list[str]):
    """pycocotools' evaluation, accumulated and summarised: `.stats` are the twelve numbers, -1 for undefined."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [{"id": image + 1, "width": 1000, "height": 1000} for image in range(len(truths))]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(class_names)]
    labels, results = [], []
    for image, (truth, found) in enumerate(zip(truths, predictions, strict=True), start=1):
        for row in range(len(truth)):
            x1, y1, x2, y2 = truth.boxes_xyxy[row].tolist()
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": int(truth.class_ids[row]) + 1, "image_id": image}
            extra = {"area": float(truth.areas[row]), "iscrowd": int(truth.ignored[row]), "id": len(labels) + 1}
            labels.append(box | extra)
        for row in range(len(found)):
            x1, y1, x2, y2 = found.boxes_xyxy[row].astype(float).tolist()
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": int(found.class_ids[row]) + 1, "image_id": image}
            results.append(box | {"score": float(found.scores[row])})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "categories": categories, "annotations": labels, "info": {}}
        coco.createIndex()
        if results:
            detections = coco.loadRes(results)
        else:
            detections = COCO()
            detections.dataset = coco.dataset | {"annotations": []}
            detections.createIndex()
        evaluation = COCOeval(coco, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
