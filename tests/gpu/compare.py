#!/usr/bin/env python3
"""Compares two JSON files of `runtime detect` for the same images. Prints the differences as JSON; the exit code is 1
if they are larger than allowed.

Detections with the same label are matched one to one in descending order of score, each with the free box of highest IoU:
at least 0.9, or every edge within 0.5 pixels.
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
    """Pairs of matched detections, and the unmatched detections of both files."""
    pairs, unmatched, free = [], [], list(right)
    for a in sorted(left, key=lambda detection: -detection["score"]):
        partner = max((b for b in free if is_match(a, b)), key=lambda b: iou(a["box"], b["box"]), default=None)
        if partner is None:
            unmatched.append(a)
        else:
            free.remove(partner)
            pairs.append((a, partner))
    return pairs, unmatched, free


parser = argparse.ArgumentParser()
parser.add_argument("files", nargs=2)
parser.add_argument("--min-score", type=float, required=True, help="detections with lower scores may be unmatched")
parser.add_argument("--max-unmatched", type=float, required=True, help="maximum fraction of unmatched detections in both files")
parser.add_argument("--max-score-difference", type=float, required=True)
arguments = parser.parse_args()

sides = [json.load(open(file)) for file in arguments.files]
assert [image["file"] for image in sides[0]] == [image["file"] for image in sides[1]], "the files are about different images"
counted = lambda detections: sum(detection["score"] >= arguments.min_score for detection in detections)
total = unmatched = 0
max_difference = 0.0
for left, right in zip(*sides):
    left, right = left["detections"], right["detections"]
    pairs, *both_unmatched = match(left, right)
    total += counted(left) + counted(right)
    unmatched += sum(map(counted, both_unmatched))
    max_difference = max([max_difference, *(abs(a["score"] - b["score"]) for a, b in pairs)])
fraction = unmatched / max(total, 1)
print(json.dumps({"detections": total, "unmatched": round(fraction, 6), "score_difference": max_difference}))
sys.exit(total == 0 or fraction > arguments.max_unmatched or max_difference > arguments.max_score_difference)
