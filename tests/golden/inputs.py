"""Expected preprocessing of other RetinaNet implementations: sizes, boxes, pixels and anchors.

    pip install torch==2.11.0 torchvision==0.26.0 numpy==2.4.6 scikit-image==0.26.0
    python inputs.py     # writes inputs.json, which models/tests/inputs.rs reads

torchvision and scikit-image are called. The rules of yhenon/pytorch-retinanet (0348a9d) for the resized size and for boxes
are reimplemented. Tests need neither this script nor Python.
"""

import json
import random
from pathlib import Path

import numpy as np
import skimage
import torch
import torchvision
from skimage.transform import resize
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.models.detection.transform import GeneralizedRCNNTransform

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# Width and height. Shorter sides of 97, 161, 305 and 322 are resized to 799; the last sizes are wide, tiny or reduced.
SIZES = [(640, 480), (480, 640), (97, 130), (130, 97), (161, 161), (305, 400), (322, 400), (416, 416), (800, 800)]
SIZES += [(1800, 1200), (1333, 800), (1334, 800), (1920, 1080), (1500, 200), (200, 1500), (1, 1), (3, 2), (19, 32), (608, 1024)]
random.seed(0)
SIZES += [(random.randint(50, 1200), random.randint(50, 1200)) for _ in range(60)]

INPUTS = [(800, 800), (800, 1088), (832, 1344), (1344, 800), (32, 32), (32, 96), (640, 1056), (192, 1344)]


def pattern(width, height):
    """[height, width, 3], in [0, 255]."""
    return np.array([[[(x * 37 + y * 61 + c * 101) % 256 for c in range(3)] for x in range(width)] for y in range(height)])


def transform(shorter=800, longer=1333, fixed=None):
    # torchvision's fixed size is (width, height).
    fixed = fixed and (fixed[1], fixed[0])
    return GeneralizedRCNNTransform(shorter, longer, MEAN, STD, fixed_size=fixed).eval()


def torchvision_size(source, width, height, fixed=None):
    box = [0.1 * width, 0.3 * height, 0.8 * width, 0.9 * height]
    targets = [dict(boxes=torch.tensor([box]))]
    rules = transform(fixed=fixed)
    images, targets = rules([torch.zeros(3, height, width)], targets)
    ((resized_height, resized_width),) = images.image_sizes
    # A box in pixels of the input, converted to pixels of the image.
    found = [0.1 * resized_width, 0.3 * resized_height, 1.0 * resized_width, 1.0 * resized_height]
    results = rules.postprocess([dict(boxes=torch.tensor([found]))], images.image_sizes, [(height, width)])
    return dict(
        source=source,
        image=[width, height],
        resized=[resized_width, resized_height],
        padded=list(images.tensors.shape[:1:-1]),
        box=box,
        box_in_input=targets[0]["boxes"][0].tolist(),
        found=found,
        found_in_image=results[0]["boxes"][0].tolist(),
    )


def yhenon_size(width, height):
    scale = 608 / min(width, height)
    if max(width, height) * scale > 1024:
        scale = 1024 / max(width, height)
    resized = [int(round(width * scale)), int(round(height * scale))]
    box = [0.1 * width, 0.3 * height, 0.8 * width, 0.9 * height]
    found = [0.1 * resized[0], 0.3 * resized[1], 1.0 * resized[0], 1.0 * resized[1]]
    return dict(
        source="yhenon",
        image=[width, height],
        resized=resized,
        padded=[side + 32 - side % 32 for side in resized],
        box=box,
        box_in_input=[side * scale for side in box],
        found=found,
        found_in_image=[side / scale for side in found],
    )


def pixels(source, width, height, resized, antialias):
    """The green channel of the network's input, row by row, without padding."""
    image = pattern(width, height).astype(np.float32) / 255.0
    if source == "yhenon":
        normalized = (image - np.array([[MEAN]])) / np.array([[STD]])
        image = resize(normalized, resized, anti_aliasing=None if antialias else False)
    else:
        images, _ = transform(fixed=resized)([torch.tensor(image.transpose(2, 0, 1))])
        image = images.tensors[0, :, : resized[0], : resized[1]].numpy().transpose(1, 2, 0)
    assert image.shape == (*resized, 3)
    green = [round(float(value), 6) for value in image[:, :, 1].ravel()]
    return dict(source=source, image=[width, height], resized=resized[::-1], antialias=antialias, green=green)


def anchors(height, width):
    features = [torch.zeros(1, 1, -(-height // 2**p), -(-width // 2**p)) for p in range(3, 8)]
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    (found,) = _default_anchorgen()(images, features)
    ends = np.cumsum([9 * feature.shape[2] * feature.shape[3] for feature in features])
    # The last anchor of each level, and the one in the middle of the list.
    rows = [int(end) - 1 for end in ends] + [len(found) // 2]
    sums = found.double().sum(dim=0).tolist()
    return dict(input=[height, width], count=len(found), rows=rows, boxes=found[rows].tolist(), sums=sums)


def main():
    torch.set_num_threads(1)
    versions = [torch.__version__.split("+")[0], torchvision.__version__.split("+")[0], skimage.__version__]
    assert versions == ["2.11.0", "0.26.0", "0.26.0"], versions
    sizes = [torchvision_size("torchvision-v1", *size) for size in SIZES]
    sizes += [torchvision_size("mlperf", *size, fixed=(800, 800)) for size in SIZES[:10]]
    sizes += [yhenon_size(*size) for size in SIZES]
    # Enlarged, reduced, strongly reduced, one side of each, one-pixel sides, and unchanged. New sizes are height, width.
    ways = [(7, 5, [8, 11]), (23, 17, [9, 12]), (50, 40, [5, 6]), (23, 17, [20, 9]), (1, 9, [4, 3]), (9, 1, [2, 5]), (6, 4, [4, 6])]
    resized = [pixels("torchvision-v1", *way, False) for way in ways]
    resized += [pixels("yhenon", *way, antialias) for way in ways for antialias in (True, False)]
    cases = dict(sizes=sizes, pixels=resized, anchors=[anchors(*size) for size in INPUTS])
    parts = []
    for name, list_ in cases.items():
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in list_)
        parts.append(f'"{name}":[\n{lines}\n]')
    (Path(__file__).parent / "inputs.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")


main()
