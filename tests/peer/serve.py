"""The usual Python service for the same model, for interop/load.py: FastAPI, uvicorn, Pillow, NumPy and onnxruntime.

    python serve.py MODEL.onnx PORT

`POST /detect` with an image as the body returns the JSON of `runtime serve`. Preprocessing and post-processing follow the
spec in the model. It reads the parts of a spec that models with these defaults have, and refuses others.
"""

import io
import sys
from functools import lru_cache

import numpy as np
import onnxruntime
import uvicorn
import yaml
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageOps

model, port = sys.argv[1], int(sys.argv[2])
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
spec = yaml.safe_load(session.get_modelmeta().custom_metadata_map["retinanet.spec"])
pre, post, anchors, coder = (spec[key] for key in ["preprocessing", "postprocessing", "anchors", "box_coder"])
assert pre["filter"] == "bilinear" and pre["fixed_size"] is None, pre
app = FastAPI()


@lru_cache(maxsize=64)
def anchors_of(height, width):
    """Anchors [A, 4] in pixels of the padded input."""
    shift = {"half": 0.5, "zero": 0.0}[anchors["center"]]
    parts = []
    for level, size in enumerate(anchors["sizes"], start=3):
        pairs = [(r, s) for r in anchors["ratios"] for s in anchors["scales"]]
        if anchors["order"] == "scale_major":
            pairs = [(r, s) for s in anchors["scales"] for r in anchors["ratios"]]
        sides = np.array([(size * s / r**0.5, size * s * r**0.5) for r, s in pairs])
        cell = np.concatenate([-sides / 2, sides / 2], 1)
        step = 2**level
        y, x = np.mgrid[: -(-height // step), : -(-width // step)]
        centers = (np.stack([x, y, x, y], -1).reshape(-1, 1, 4) + shift) * step
        parts.append((centers + cell).reshape(-1, 4))
    return np.concatenate(parts).astype(np.float32)


def nms(boxes, scores, threshold):
    x1, y1, x2, y2 = boxes.T
    areas, order, kept = (x2 - x1) * (y2 - y1), scores.argsort()[::-1], []
    while order.size:
        first, rest = order[0], order[1:]
        kept.append(first)
        width = np.minimum(x2[first], x2[rest]) - np.maximum(x1[first], x1[rest])
        height = np.minimum(y2[first], y2[rest]) - np.maximum(y1[first], y1[rest])
        intersection = width.clip(0) * height.clip(0)
        order = rest[intersection <= threshold * (areas[first] + areas[rest] - intersection)]
    return kept


def detect(content):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    width, height = image.size
    scale = min(pre["shorter_side"] / min(image.size), pre["longer_side"] / max(image.size))
    columns, rows = round(width * scale), round(height * scale)
    image = image.resize((columns, rows), Image.Resampling.BILINEAR)
    pixels = (np.asarray(image, np.float32) / 255 - np.array(pre["mean"], np.float32)) / np.array(pre["std"], np.float32)
    padded = np.zeros((1, 3, -(-rows // 32) * 32, -(-columns // 32) * 32), np.float32)
    padded[0, :, :rows, :columns] = pixels.transpose(2, 0, 1)

    scores, offsets = session.run(["classification", "regression"], {"images": padded})
    at, labels = np.nonzero(scores[0] > post["score_threshold"])
    scores, offsets, boxes = scores[0][at, labels], offsets[0][at] * coder["std"], anchors_of(*padded.shape[2:])[at]
    sides = boxes[:, 2:] - boxes[:, :2]
    centers = boxes[:, :2] + 0.5 * sides + offsets[:, :2] * sides
    sides = sides * np.exp(offsets[:, 2:])
    boxes = np.concatenate([centers - 0.5 * sides, centers + 0.5 * sides], 1).clip(0, [columns, rows] * 2)
    # Boxes of different classes are moved apart, so that one pass suppresses per class.
    kept = nms(boxes + labels[:, None] * (boxes.max(initial=0) + 1), scores, post["nms_threshold"])[: post["max_detections"]]
    boxes = boxes / ([columns / width, rows / height] * 2)
    classes = spec["classes"]
    return {
        "width": width,
        "height": height,
        "detections": [
            {
                "label": classes[labels[i]]["name"],
                "category_id": classes[labels[i]]["id"],
                "score": float(scores[i]),
                "box": boxes[i].tolist(),
            }
            for i in kept
        ],
    }


@app.post("/detect")
async def answer(request: Request):
    content = await request.body()
    try:
        return await run_in_threadpool(detect, content)
    except OSError as error:
        raise HTTPException(400, str(error)) from error


uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
