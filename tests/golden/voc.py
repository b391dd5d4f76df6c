"""Average precision in VOC's sense, of the sets in evaluation.json.

    pip install numpy==2.4.6
    python voc.py        # writes voc.json, which models/tests/evaluation.rs reads

As the challenge's devkit has it, except that a box is `w` wide and not `w + 1`, and that tenths of recall are exact.
Crowds are treated as the devkit treats what is difficult. Tests need neither this script nor Python.
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
    """Of one class: by area, and by eleven points; -1 where no object is to be found."""
    images = {}
    for annotation in annotations:
        images.setdefault(annotation["image_id"], []).append(annotation)
    boxes = {image: np.array([object["bbox"] for object in objects], float) for image, objects in images.items()}
    positives = sum(not annotation["iscrowd"] for annotation in annotations)
    if positives == 0:
        return -1.0, -1.0
    taken, right, wrong = set(), [], []
    # Of equal scores those of the earlier image come first.
    for result in sorted(results, key=lambda result: (-result["score"], result["image_id"])):
        image = result["image_id"]
        overlaps = iou(np.array(result["bbox"], float), boxes[image]) if image in boxes else np.zeros(1)
        best = int(overlaps.argmax())
        found = overlaps[best] >= threshold
        if found and images[image][best]["iscrowd"]:
            continue
        new = found and (image, best) not in taken
        if new:
            taken.add((image, best))
        right.append(new)
        wrong.append(not new)
    right, wrong = np.cumsum(right), np.cumsum(wrong)
    recall, precision = right / positives, right / (right + wrong)
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
