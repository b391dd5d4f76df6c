#!/usr/bin/env python3
"""Whether two JSON files of `runtime detect` say the same of the same images. Prints the differences as JSON; the exit code
is 1 when they are larger than allowed.

Detections of one label are matched one to one, those with the highest scores first, each with the box that overlaps it
most: by an IoU of 0.9, or within 0.5 pixels on every side.
"""
import argparse
import json
import sys


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    union = area(a) + area(b) - intersection
    return intersection / union if union > 0 else 0.0


def is_match(a, b):
    same = all(abs(p - q) <= 0.5 for p, q in zip(a["box"], b["box"]))
    return a["label"] == b["label"] and (same or iou(a["box"], b["box"]) >= 0.9)


def match(left, right):
    """Pairs of matched detections, and the detections of both sides that have no partner."""
    pairs, alone, free = [], [], list(right)
    for a in sorted(left, key=lambda detection: -detection["score"]):
        partner = max((b for b in free if is_match(a, b)), key=lambda b: iou(a["box"], b["box"]), default=None)
        if partner is None:
            alone.append(a)
        else:
            free.remove(partner)
            pairs.append((a, partner))
    return pairs, alone, free


parser = argparse.ArgumentParser()
parser.add_argument("files", nargs=2)
parser.add_argument("--min-score", type=float, required=True, help="detections below this need no partner")
parser.add_argument("--max-unmatched", type=float, required=True, help="fraction of the detections of both files")
parser.add_argument("--max-score-difference", type=float, required=True)
arguments = parser.parse_args()

sides = [json.load(open(file)) for file in arguments.files]
assert [image["file"] for image in sides[0]] == [image["file"] for image in sides[1]], "not the same images"
scores = lambda detections: sum(detection["score"] >= arguments.min_score for detection in detections)
total = unmatched = 0
worst = 0.0
for left, right in zip(*sides):
    left, right = left["detections"], right["detections"]
    pairs, *alone = match(left, right)
    total += scores(left) + scores(right)
    unmatched += sum(map(scores, alone))
    worst = max([worst, *(abs(a["score"] - b["score"]) for a, b in pairs)])
fraction = unmatched / max(total, 1)
print(json.dumps({"detections": total, "unmatched": round(fraction, 6), "score_difference": worst}))
sys.exit(total == 0 or fraction > arguments.max_unmatched or worst > arguments.max_score_difference)
