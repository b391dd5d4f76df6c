"""Expected detections of Detectron2, MMDetection and ODTK, with pseudorandom weights.

    pip install torch==2.11.0 torchvision==0.26.0 numpy==2.4.6 pillow opencv-python-headless mmdet==3.3.0 mmengine \
        mmcv-lite==2.1.0 fvcore iopath omegaconf pycocotools      # and what these need
    python import_projects.py DATA DETECTRON2 ODTK
        # DATA: ../shared/data; checkouts of facebookresearch/detectron2 (02b5c4e) and NVIDIA/retinanet-examples (65e6310)

Writes import-projects.json, which tests/import.rs reads, and names-*.txt, which models/tests/import.rs reads too. Images are
PNG and BMP files, so every decoder gives the same pixels. Tests need neither this script nor Python.

* Detectron2: its own code from the image to the boxes, on the CPU. RetinaNet needs none of its C++ operations.
* MMDetection: its own code from the image to the boxes. `mmcv.ops`, which mmcv-lite lacks, is replaced: `batched_nms` is
  torchvision's with mmcv's offsets, everything else is never called.
* ODTK: its own network and anchors (model.py, backbones, box.py). decode.cu and nms.cu need a GPU; they are transcribed, as is the
  resizing of data.py. Boxes are those that its kernels compute, as edges: the last pixel plus one, divided by the ratio.
"""

import importlib.abc
import importlib.machinery
import json
import math
import sys
import types
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from import_weights import fill

DATA, DETECTRON2, ODTK = map(Path, sys.argv[1:])
HERE = Path(__file__).parent
# Maximum number of detections that are written per image.
MAX_DETECTIONS = 100


def pixels(image):
    """[H, W, 3], RGB bytes."""
    file, box = image
    image = Image.open(DATA / file).convert("RGB")
    return np.array(image.crop(box) if box else image)


def detectron2(depth, rgb):
    sys.path.insert(0, str(DETECTRON2))
    from detectron2.config import get_cfg
    from detectron2.data import transforms
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(str(DETECTRON2 / "configs/Base-RetinaNet.yaml"), allow_unsafe=True)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = depth
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    if rgb:  # as tools/convert-torchvision-to-d2.py says
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375]
        cfg.INPUT.FORMAT = "RGB"
    aug = transforms.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def detect(model, image):
        """As DefaultPredictor."""
        image = image if rgb else image[:, :, ::-1]
        height, width = image.shape[:2]
        image = aug.get_transform(image).apply_image(image)
        image = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
        found = model([{"image": image, "height": height, "width": width}])[0]["instances"]
        return found.pred_classes, found.scores, found.pred_boxes.tensor

    return build_model(cfg), detect


class MmcvOps(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands for `mmcv.ops` and its parts."""

    def find_spec(self, name, path, target=None):
        if name == "mmcv.ops" or name.startswith("mmcv.ops."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: type(name, (torch.nn.Module,), {})
        module.batched_nms = self.batched_nms
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def batched_nms(boxes, scores, idxs, nms_cfg, class_agnostic=False):
        """mmcv/ops/nms.py of 2.1.0, for `nms_cfg` of type nms and fewer than 10,000 boxes."""
        assert nms_cfg["type"] == "nms" and not class_agnostic and len(boxes) < 10000
        offsets = idxs.to(boxes) * (boxes.max() + torch.tensor(1).to(boxes))
        keep = torchvision.ops.nms(boxes + offsets[:, None], scores, nms_cfg["iou_threshold"])
        return torch.cat([boxes[keep], scores[keep][:, None]], -1), keep


def mmdetection(config):
    sys.meta_path.insert(0, MmcvOps())
    import mmdet
    from mmdet.apis import inference_detector, init_detector

    path = Path(mmdet.__file__).parent / ".mim/configs/retinanet" / config
    model = init_detector(str(path), None, device="cpu")

    def detect(model, image):
        # MMDetection takes images as OpenCV reads them.
        found = inference_detector(model, np.ascontiguousarray(image[:, :, ::-1])).pred_instances
        return found.labels, found.scores, found.bboxes

    return model, detect


def odtk(backbone):
    from torchvision.models import mobilenet, resnet

    resnet.model_urls = mobilenet.model_urls = defaultdict(str)
    sys.path.insert(0, str(ODTK))
    native = types.ModuleType("odtk._C")
    native.Engine = native.decode = native.iou = native.nms = None
    sys.modules["odtk._C"] = native
    import odtk.backbones.mobilenet as odtk_mobilenet  # noqa: F401
    from odtk.backbones.layers import convert_fixedbn_model
    from odtk.box import generate_anchors
    from odtk.model import Model

    model = convert_fixedbn_model(Model(backbones=backbone, classes=80))
    model.exporting = True

    def detect(model, image):
        image = Image.fromarray(image)
        ratio = 800 / min(image.size)
        if ratio * max(image.size) > 1333:
            ratio = 1333 / max(image.size)
        image = image.resize([int(ratio * side) for side in image.size], Image.BILINEAR)
        data = torch.from_numpy(np.array(image)).float().div(255).permute(2, 0, 1)
        for channel, mean, std in zip(data, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]):
            channel.sub_(mean).div_(std)
        pad = [(128 - side % 128) % 128 for side in image.size]
        data = torch.nn.functional.pad(data, (0, pad[0], 0, pad[1]))[None]
        scores, boxes, labels = [], [], []
        for score, box in zip(*model(data)):
            stride = data.shape[-1] // score.shape[-1]
            found = odtk_decode(score[0], box[0], stride, generate_anchors(stride, model.ratios, model.scales))
            for total, part in zip((scores, boxes, labels), found):
                total.append(part)
        scores, boxes, labels = map(torch.cat, (scores, boxes, labels))
        keep = odtk_nms(scores, boxes, labels)[:100]
        boxes = boxes + torch.tensor([0, 0, 1, 1])
        return labels[keep], scores[keep], boxes[keep] / ratio

    return model, detect


def odtk_decode(scores, boxes, stride, anchors):
    """csrc/cuda/decode.cu."""
    height, width = scores.shape[1:]
    flat = scores.flatten()
    indices = (flat > 0.05).nonzero().flatten()
    indices = indices[flat[indices].argsort(descending=True, stable=True)[:1000]]
    x, y = indices % width, indices // width % height
    labels, a = indices // (height * width) % 80, indices // (80 * height * width)
    delta = boxes.view(9, 4, height, width)[a, :, y, x]
    corners = anchors[a] + torch.stack([x, y, x, y], 1) * stride
    size = corners[:, 2:] - corners[:, :2] + 1
    center = delta[:, :2] * size + corners[:, :2] + 0.5 * size
    size = delta[:, 2:].exp() * size
    limit = torch.tensor([width * stride, height * stride]) - 1.0
    low = (center - 0.5 * size).clamp(min=0)
    high = torch.minimum(center + 0.5 * size - 1, limit)
    return flat[indices], torch.cat([low, high], 1), labels


def odtk_nms(scores, boxes, labels, threshold=0.5):
    """csrc/cuda/nms.cu: areas are of inclusive pixels."""
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        others = torch.tensor([j for j in kept if labels[j] == labels[i]], dtype=torch.long)
        low = torch.maximum(boxes[others, :2], boxes[i, :2])
        high = torch.minimum(boxes[others, 2:], boxes[i, 2:])
        inter = (high - low + 1).clamp(min=0).prod(1)
        if not (inter / (areas[others] + areas[i] - inter) > threshold).any():
            kept.append(i)
    return kept


HOPPER = "pictures/pillow__hopper.bmp"
BGR = dict(stem=0.01 / 57)
# Basic blocks have no small scale at their end, so activations are about 16 times as large.
BASIC = dict(scores=0.07 / 16, boxes=0.02 / 16)
BOTTLENECK = dict(scores=0.07, boxes=0.02)
DEEP = dict(scores=0.07 / 2, boxes=0.02 / 2)
# See import.py; `stem` scales the weights of the first convolution.
CASES = [
    (dict(kind="detectron2", bias=-7.4, **BOTTLENECK, **BGR), lambda: detectron2(50, False)),
    (dict(kind="detectron2-r101", bias=-7.4, **DEEP, **BGR), lambda: detectron2(101, False)),
    (dict(kind="detectron2-rgb", bias=-8.3, **BASIC), lambda: detectron2(18, True)),
    (dict(kind="mmdetection", bias=-5.9, **BASIC), lambda: mmdetection("retinanet_r18_fpn_1xb8-1x_coco.py")),
    (dict(kind="mmdetection-caffe", bias=-7.2, **BOTTLENECK, **BGR),
     lambda: mmdetection("retinanet_r50-caffe_fpn_1x_coco.py")),
    (dict(kind="odtk", bias=-5.0, **BASIC), lambda: odtk("ResNet18FPN")),
]
# The second one gets sides of x.5 pixels before they are rounded.
IMAGES = [(HOPPER, None), (HOPPER, (5, 9, 69, 128))]


def main():
    torch.set_num_threads(1)
    cases = []
    for case, build in CASES:
        model, detect = build()
        fill(model, case)
        lines = [f"{name} {list(tensor.shape)}" for name, tensor in model.state_dict().items()]
        (HERE / f"names-{case['kind']}.txt").write_text("\n".join(lines) + "\n")
        case["images"] = []
        for file, part in IMAGES:
            with torch.no_grad():
                labels, scores, boxes = detect(model, pixels((file, part)))
            print(case["kind"], file, part, len(scores), scores.tolist()[:1], scores.tolist()[-1:], file=sys.stderr)
            order = scores.argsort(descending=True, stable=True)[:MAX_DETECTIONS]
            rows = zip(*[values[order].tolist() for values in (labels, scores, boxes)])
            detections = [[label, round(score, 5), *(round(edge, 3) for edge in box)] for label, score, box in rows]
            case["images"].append(dict(file=file, part=part, count=len(scores), detections=detections))
        cases.append(case)
    (HERE / "import-projects.json").write_text(json.dumps(cases).replace("], [", "],\n[") + "\n")


main()
