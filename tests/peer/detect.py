"""Detection in Python, for benches/detect.rs: torchvision's RetinaNet, and our ONNX file of its weights run by
onnxruntime with Pillow, NumPy and torchvision's NMS.

    detect.py make FOLDER           # writes FOLDER/weights.pth, with a score bias chosen for FOLDER/image.jpg
    detect.py torchvision FOLDER    # for each line of stdin, a JSON list of files, prints a JSON object
    detect.py onnxruntime FOLDER    # the same, with FOLDER/model.onnx
"""

import json
import pathlib
import sys
import time

import numpy as np
import onnxruntime
import torch
import torchvision
from PIL import Image, ImageOps
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.transforms.functional import pil_to_tensor

SHORTER, LONGER = 624, 1333
THRESHOLD, NMS, TOP_K, DETECTIONS = 0.05, 0.5, 1000, 300
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
# Number of scores above the threshold in image.jpg.
CANDIDATES = 2000

command, folder = sys.argv[1], pathlib.Path(sys.argv[2])


def network():
    return torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, min_size=SHORTER, max_size=LONGER
    ).eval()


def upright(file):
    return ImageOps.exif_transpose(Image.open(file)).convert("RGB")


def make():
    torch.manual_seed(0)
    model = network()
    for name, tensor in model.state_dict().items():
        # Keeps the sum over the residual blocks bounded.
        if name.endswith("bn3.weight"):
            tensor.fill_(0.2)
    with torch.no_grad():
        torch.nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.05)
        bias = model.head.classification_head.cls_logits.bias
        bias.fill_(0)
        images, _ = model.transform([pil_to_tensor(upright(folder / "image.jpg")) / 255])
        logits = model.head(list(model.backbone(images.tensors).values()))["cls_logits"]
        last = torch.topk(logits.flatten(), CANDIDATES).values[-1]
        bias.fill_(float(np.log(THRESHOLD / (1 - THRESHOLD))) - last.item())
    torch.save(model.state_dict(), folder / "weights.pth")


class Torchvision:
    def __init__(self):
        self.model = network()
        self.model.load_state_dict(torch.load(folder / "weights.pth"))

    @torch.inference_mode()
    def detect(self, file):
        image = pil_to_tensor(upright(file)) / 255
        start = time.perf_counter()
        found = self.model([image])[0]
        return len(found["scores"]), time.perf_counter() - start


class Onnxruntime:
    def __init__(self):
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self.anchors = {}

    def anchors_of(self, height, width):
        """Anchors [A, 4] in pixels of the padded input, and the number of anchors of each level."""
        if (height, width) not in self.anchors:
            image = torch.zeros(1, 3, height, width)
            sides = [(-(-height // 2**p), -(-width // 2**p)) for p in range(3, 8)]
            (anchors,) = _default_anchorgen()(ImageList(image, [(height, width)]), [torch.zeros(1, 1, *side) for side in sides])
            self.anchors[height, width] = anchors.numpy(), [9 * h * w for h, w in sides]
        return self.anchors[height, width]

    def detect(self, file):
        image = upright(file)
        width, height = image.size
        scale = min(SHORTER / min(image.size), LONGER / max(image.size))
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
        pixels = (np.asarray(image, np.float32) / 255 - MEAN) / STD
        rows, columns, _ = pixels.shape
        padded = np.zeros((1, 3, -(-rows // 32) * 32, -(-columns // 32) * 32), np.float32)
        padded[0, :, :rows, :columns] = pixels.transpose(2, 0, 1)

        start = time.perf_counter()
        scores, offsets = self.session.run(["classification", "regression"], {"images": padded})
        seconds = time.perf_counter() - start

        anchors, levels = self.anchors_of(*padded.shape[2:])
        scores, offsets, classes, candidates, first = scores[0], offsets[0], scores.shape[2], [], 0
        for count in levels:
            flat = scores[first : first + count].reshape(-1)
            (above,) = np.nonzero(flat > THRESHOLD)
            if len(above) > TOP_K:
                above = above[np.argpartition(-flat[above], TOP_K)[:TOP_K]]
            candidates.append(above + first * classes)
            first += count
        candidates = np.concatenate(candidates)
        rows_of, labels = candidates // classes, candidates % classes
        scores, anchors, offsets = scores.reshape(-1)[candidates], anchors[rows_of], offsets[rows_of]
        sides = anchors[:, 2:] - anchors[:, :2]
        centers = anchors[:, :2] + 0.5 * sides + offsets[:, :2] * sides
        sides = sides * np.exp(np.minimum(offsets[:, 2:], np.log(1000 / 16)))
        boxes = np.concatenate([centers - 0.5 * sides, centers + 0.5 * sides], 1)
        boxes = boxes.clip(0, [columns, rows, columns, rows]).astype(np.float32)
        kept = torchvision.ops.batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), NMS)
        boxes = boxes[kept[:DETECTIONS].numpy()] / np.array([columns / width, rows / height] * 2, np.float32)
        return len(boxes), seconds


if command == "make":
    make()
else:
    detector = {"torchvision": Torchvision, "onnxruntime": Onnxruntime}[command]()
    for line in sys.stdin:
        start = time.perf_counter()
        found = [detector.detect(file) for file in json.loads(line)]
        response = {
            "seconds": time.perf_counter() - start,
            "network": sum(seconds for _, seconds in found),
            "detections": [count for count, _ in found],
        }
        print(json.dumps(response), flush=True)
