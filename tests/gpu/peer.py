#!/usr/bin/env python3
"""Times torchvision's RetinaNet in PyTorch (eager) for bench.sh: random weights, 80 classes, channels last, cuDNN benchmark
mode. Prints JSON.

usage: peer.py train|detect --device cuda|cpu --depth 50 --size 800x1344 --batches 8 --precision float32 --runs 20
"""
import argparse
import json
import statistics
import time

import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

parser = argparse.ArgumentParser()
parser.add_argument("task", choices=["train", "detect"])
parser.add_argument("--device", required=True)
parser.add_argument("--depth", required=True)
parser.add_argument("--size", required=True)
parser.add_argument("--batches", required=True)
parser.add_argument("--precision", required=True)
parser.add_argument("--runs", type=int, required=True)
arguments = parser.parse_args()
height, width = map(int, arguments.size.split("x"))
dtype = getattr(torch, arguments.precision)
cuda = arguments.device == "cuda"
torch.backends.cudnn.benchmark = True
torch.manual_seed(0)

backbone = resnet_fpn_backbone(
    backbone_name=f"resnet{arguments.depth}", weights=None, trainable_layers=5, returned_layers=[2, 3, 4],
    extra_blocks=LastLevelP6P7(256, 256))
model = RetinaNet(backbone, num_classes=80, min_size=min(height, width), max_size=max(height, width))
model = model.to(arguments.device, memory_format=torch.channels_last)


def host_images(batch):
    images = torch.rand(batch, 3, height, width)
    return images.pin_memory() if cuda else images


def median_ms(run):
    """Median time of a call in milliseconds, including the device's work."""
    times = []
    for _ in range(5 + arguments.runs if cuda else 1 + arguments.runs):
        start = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[-arguments.runs:])


def train(batch):
    """Milliseconds per step: upload, forward with anchor matching, backward, optimizer."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4)
    images = host_images(batch)
    corners = torch.rand(batch, 8, 2) * 0.5 * torch.tensor([width, height])
    boxes = torch.cat([corners, corners + 0.3 * min(width, height)], 2).to(arguments.device)
    targets = [{"boxes": each, "labels": torch.arange(8, device=arguments.device)} for each in boxes]

    def step():
        with torch.autocast(arguments.device, dtype, enabled=dtype != torch.float32):
            loss = sum(model(list(images.to(arguments.device, non_blocking=True)), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return median_ms(step)


def detect(batch):
    """Milliseconds per image: upload, network, download of the 1000 highest scores of each image and their offsets."""
    model.eval().to(dtype)
    images = host_images(batch)

    def run():
        device_images = images.to(arguments.device, non_blocking=True).to(dtype, memory_format=torch.channels_last)
        found = model.head(list(model.backbone(device_images).values()))
        scores, indices = found["cls_logits"].flatten(1).sigmoid().topk(1000)
        anchors = (indices // 80)[..., None].expand(-1, -1, 4)
        return scores.cpu(), indices.cpu(), found["bbox_regression"].gather(1, anchors).cpu()
    with torch.inference_mode():
        return median_ms(run) / batch


batches = [int(batch) for batch in arguments.batches.split(",")]
if arguments.task == "train":
    found = {"ms_per_step": round(train(batches[0]), 2), "batch": batches[0]}
else:
    found = {"ms_per_image": {batch: round(detect(batch), 3) for batch in batches}}
if cuda:
    found["memory_mib"] = torch.cuda.max_memory_allocated() >> 20
print(json.dumps({"torch": torch.__version__, "precision": arguments.precision, **found}))
