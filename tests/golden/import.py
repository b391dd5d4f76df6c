"""Expected detections of the projects whose weights `trainer import` reads, with pseudorandom weights.

    pip install torch==2.11.0 torchvision==0.26.0 numpy==2.4.6 scikit-image==0.26.0 pillow
    cargo run --package tests --example lossless -- IMAGES ../shared/data     # images decoded by `runtime`, as PNG
    python import.py IMAGES YHENON      # YHENON: a checkout of yhenon/pytorch-retinanet

Writes import.json (the highest-scoring detections and the number of all), which tests/import.rs reads, and names-*.txt
(tensor names and shapes), which models/tests/import.rs reads too. torchvision and the network of yhenon/pytorch-retinanet
(model.py and utils.py of 3eea11e, anchors.py of 5a5c32f) run unchanged; yhenon's pre- and post-processing (dataloader.py,
coco_eval.py) is reimplemented. MLPerf's network is torchvision's with MLPerf's backbone, sizes and classes. Tests need
neither this script nor Python.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.transform import resize
from torchvision.models import resnet50, resnext50_32x4d
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

IMAGES, YHENON = sys.argv[1:]
sys.path.insert(0, YHENON)
from import_weights import fill  # noqa: E402
from retinanet import model as yhenon  # noqa: E402

HERE = Path(__file__).parent
BLOOD = "bccd/JPEGImages/BloodImage_00007.jpg"
# Maximum number of detections that are written per image.
MAX_DETECTIONS = 120

def v1():
    backbone = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    model = RetinaNet(_resnet_fpn_extractor(backbone, 5, [2, 3, 4], LastLevelP6P7(256, 256)), 91)
    overwrite_eps(model, 0.0)
    return model


def deepforest():
    """What DeepForest trains: labels from 0, thresholds of its own."""
    return retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, nms_thresh=0.05, score_thresh=0.1
    )


def v2():
    return retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None)


def mlperf():
    backbone = resnext50_32x4d(weights=None, norm_layer=FrozenBatchNorm2d)
    extractor = _resnet_fpn_extractor(backbone, 5, [2, 3, 4], LastLevelP6P7(256, 256))
    return RetinaNet(extractor, 264, anchor_generator=_default_anchorgen(), fixed_size=(800, 800))


def pixels(image):
    """[H, W, 3], in [0, 255]."""
    file, box = image
    image = Image.open(Path(IMAGES) / f"{file.rsplit('.', 1)[0].replace('/', '-')}.png").convert("RGB")
    return np.array(image.crop(box) if box else image)


def torchvision_detects(model, image):
    (found,) = model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    return found["labels"], found["scores"], found["boxes"]


def yhenon_detects(model, image):
    """The same as dataloader.py (Normalizer, Resizer) and coco_eval.py. Boxes are in pixels of the image."""
    image = (image / 255.0 - np.array([[[0.485, 0.456, 0.406]]])) / np.array([[[0.229, 0.224, 0.225]]])
    rows, columns, _ = image.shape
    scale = 608 / min(rows, columns)
    if max(rows, columns) * scale > 1024:
        scale = 1024 / max(rows, columns)
    image = resize(image, (int(round(rows * scale)), int(round(columns * scale))))
    rows, columns, _ = image.shape
    padded = np.zeros((rows + 32 - rows % 32, columns + 32 - columns % 32, 3))
    padded[:rows, :columns] = image
    scores, labels, boxes = model(torch.from_numpy(padded).permute(2, 0, 1).float().unsqueeze(0))
    return labels, scores, boxes / scale


# `scores` and `boxes` scale the weights of the last layers; with `bias`, they give about a hundred detections per image.
# Each image is a file and a crop: left, top, right, bottom, or None.
CASES = [
    (dict(kind="torchvision-v1-coco", scores=0.07, boxes=0.02, bias=-7.75), v1,
     [(BLOOD, None), ("pictures/pillow__hopper.bmp", None), (BLOOD, (31, 7, 353, 407))]),
    (dict(kind="torchvision-v1", scores=0.07, boxes=0.02, bias=-3.5), deepforest,
     [(BLOOD, None), (BLOOD, (31, 7, 353, 407))]),
    (dict(kind="torchvision-v2", scores=1.0, boxes=0.3, bias=-7.6), v2,
     [(BLOOD, (0, 0, 480, 480)), ("pictures/exif__Landscape_1.jpg", None)]),
    (dict(kind="yhenon", scores=0.07, boxes=0.06, bias=-6.75), partial(yhenon.resnet50, 80),
     [(BLOOD, None), ("pictures/exif__Landscape_1.jpg", None)]),
    (dict(kind="mlperf", scores=0.07, boxes=0.02, bias=-8.45), mlperf, [(BLOOD, None)]),
]


def main():
    torch.set_num_threads(1)
    cases = []
    for case, build, images in CASES:
        model = fill(build(), case)
        lines = [f"{name} {list(tensor.shape)}" for name, tensor in model.state_dict().items()]
        (HERE / f"names-{case['kind']}.txt").write_text("\n".join(lines) + "\n")
        detect = yhenon_detects if case["kind"] == "yhenon" else torchvision_detects
        case["images"] = []
        for file, part in images:
            with torch.no_grad():
                labels, scores, boxes = detect(model, pixels((file, part)))
            print(case["kind"], file, part, len(scores), scores.max().item(), file=sys.stderr)
            extent = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            order = scores[extent].argsort(descending=True, stable=True)[:MAX_DETECTIONS]
            rows = zip(*[values[extent][order].tolist() for values in (labels, scores, boxes)])
            detections = [[label, round(score, 5), *(round(edge, 3) for edge in box)] for label, score, box in rows]
            case["images"].append(dict(file=file, part=part, count=int(extent.sum()), detections=detections))
        cases.append(case)
    (HERE / "import.json").write_text(json.dumps(cases).replace("], [", "],\n[") + "\n")


main()
