"""Pseudorandom weights, which tests/import.rs computes too. Used by import.py and import_projects.py."""

import math
import re

import numpy as np
import torch

# Parts of the names of the last layers.
SCORES = ["cls_logits", "classificationModel.output", "cls_score", "retina_cls", "cls_head.8"]
BOXES = ["bbox_reg", "regressionModel.output", "bbox_pred", "retina_reg", "box_head.8"]
# torchvision's outputs that are not COCO classes: the background (0) and unused category ids.
UNUSED = [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


def uniform(name, shape, low, high):
    """Pseudorandom numbers, a function of name and element index; tests/import.rs computes the same bits."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    unit = (x >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    low, high = np.float32(low), np.float32(high)
    return (low + unit * (high - low)).reshape(shape)


def weight(name, shape, case):
    """Values of the tensor `name`. Activations neither vanish nor explode, and no normalization is the identity."""
    scores = any(part in name for part in SCORES)
    boxes = any(part in name for part in BOXES)
    # The stem's variances are so small that the epsilon of its batch norm matters.
    stem = re.fullmatch(r"(backbone\.(body\.|bottom_up\.stem\.)?|backbones\.\w+\.features\.)?(conv1|bn1)(\.norm)?\.\w+", name)
    if len(shape) == 4:
        gain = case["scores"] if scores else case["boxes"] if boxes else case.get("stem", 0.01) if stem else 1.0
        bound = math.sqrt(6 / math.prod(shape[1:])) * gain
        return uniform(name, shape, -bound, bound)
    if name.endswith("running_var"):
        return uniform(name, shape, 0.5e-4, 1.5e-4) if stem else uniform(name, shape, 0.5, 1.5)
    if scores:
        values = uniform(name, shape, case["bias"] - 0.5, case["bias"] + 0.5)
        if case["kind"] in ["torchvision-v1-coco", "torchvision-v2"]:
            values.reshape(-1, 91)[:, UNUSED] = -30
        return values
    if name.endswith("running_mean") and stem:
        return uniform(name, shape, -0.001, 0.001)
    if name.endswith("bias") or name.endswith("running_mean"):
        return uniform(name, shape, -0.1, 0.1)
    # A small scale at the end of each residual block keeps the sum over the blocks bounded.
    return uniform(name, shape, 0.1, 0.3) if ".bn3." in name or ".conv3.norm." in name else uniform(name, shape, 0.7, 1.3)


def fill(model, case):
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape), case)))
    return model.eval()
