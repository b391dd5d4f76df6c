"""torchvision's post-processing and NMS on one thread, for benches/postprocess.rs: postprocess.py FOLDER.

For each line of stdin, a JSON object, prints a JSON object:
    {"scores": true, "levels": [...]}                             writes FOLDER/scores, the sigmoid of FOLDER/logits
    {"detect": [height, width], "levels": [...], "runs": count}   returns detections and the median time in milliseconds
    {"suppress": threshold, "runs": count}                        returns how many of FOLDER/boxes NMS keeps, and the time
All files are float32, little-endian.
"""

import json
import pathlib
import statistics
import sys
import time

import numpy as np
import torch
import torchvision

torch.set_num_threads(1)
folder = pathlib.Path(sys.argv[1])
model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=80).eval()


def read(name, columns):
    return torch.from_numpy(np.fromfile(folder / name, "<f4").reshape(-1, columns))


def timed(work, runs):
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        times.append(1e3 * (time.perf_counter() - start))
    return result, statistics.median(times)


@torch.inference_mode()
def respond(request):
    if "suppress" in request:
        boxes = read("boxes", 5)
        kept, ms = timed(lambda: torchvision.ops.nms(boxes[:, 1:], boxes[:, 0], request["suppress"]), request["runs"])
        return {"kept": len(kept), "ms": ms}
    levels = request["levels"]
    logits = read("logits", 80).split(levels)
    if "scores" in request:
        np.concatenate([torch.sigmoid(level).numpy() for level in logits]).tofile(folder / "scores")
        return {}
    head = {
        "cls_logits": [level[None] for level in logits],
        "bbox_regression": [level[None] for level in read("offsets", 4).split(levels)],
    }
    anchors = [list(read("anchors", 4).split(levels))]
    found, ms = timed(lambda: model.postprocess_detections(head, anchors, [tuple(request["detect"])])[0], request["runs"])
    return {
        "ms": ms,
        "scores": found["scores"].tolist(),
        "labels": found["labels"].tolist(),
        "boxes": found["boxes"].tolist(),
    }


for line in sys.stdin:
    print(json.dumps(respond(json.loads(line))), flush=True)
