"""Expected Pascal VOC average precision of the data sets in evaluation.json.

    pip install numpy==2.4.6
    python voc.py        # writes voc.json, which models/tests/evaluation.rs reads

Like VOC's devkit, except that box widths are `w` instead of `w + 1` and that the eleven recall points are exact. Crowd
annotations are treated like `difficult` objects. Tests need neither this script nor Python.
"""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
IOUS = [0.3, 0.5, 0.75]


def iou(box, boxes):
    corner = np.maximum(box[:2], boxes[:, :2])
    sides = np.clip(np.minimum(box[:2] + box[2:], boxes[:, :2] + boxes[:, 2:]) - corner, 0, None)
    common = sides.prod(axis=1)
    return common / (box[2:].prod() + boxes[:, 2:].prod(axis=1) - common)


def average_precisions(annotations, results, threshold):
    """AP of one class: area under the curve, and eleven-point; -1 if the class has no objects."""
    images = {}
    for annotation in annotations:
        images.setdefault(annotation["image_id"], []).append(annotation)
    boxes = {image: np.array([object["bbox"] for object in objects], float) for image, objects in images.items()}
    positives = sum(not annotation["iscrowd"] for annotation in annotations)
    if positives == 0:
        return -1.0, -1.0
    matched, true_positives, false_positives = set(), [], []
    # Among equal scores, detections of earlier images come first.
    for result in sorted(results, key=lambda result: (-result["score"], result["image_id"])):
        image = result["image_id"]
        overlaps = iou(np.array(result["bbox"], float), boxes[image]) if image in boxes else np.zeros(1)
        best = int(overlaps.argmax())
        found = overlaps[best] >= threshold
        if found and images[image][best]["iscrowd"]:
            continue
        new = found and (image, best) not in matched
        if new:
            matched.add((image, best))
        true_positives.append(new)
        false_positives.append(not new)
    true_positives, false_positives = np.cumsum(true_positives), np.cumsum(false_positives)
    recall, precision = true_positives / positives, true_positives / (true_positives + false_positives)
    points = [precision[recall >= tenth].max(initial=0) for tenth in np.arange(11) / 10]
    recall, precision = np.r_[0, recall, 1], np.r_[0, precision, 0]
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * precision[1:]).sum()), float(np.mean(points))


def main():
    cases = []
    for case in json.loads((FOLDER / "evaluation.json").read_text()):
        of_class = lambda boxes, id: [box for box in boxes if box["category_id"] == id]
        ids = sorted(category["id"] for category in case["truth"]["categories"])
        for threshold in IOUS:
            found = [
                average_precisions(of_class(case["truth"]["annotations"], id), of_class(case["results"], id), threshold)
                for id in ids
            ]
            present = [numbers for numbers in found if numbers[0] > -1]
            mean = list(map(float, np.mean(present, axis=0))) if present else [-1.0, -1.0]
            cases.append(dict(name=case["name"], iou=threshold, mean=mean, classes=found))
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (FOLDER / "voc.json").write_text(f"[\n{lines}\n]\n")


main()
