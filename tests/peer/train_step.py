"""Times one training step of torchvision's RetinaNet, from forward pass to optimizer, with 80 classes.

Started by tests/benches/train_step.rs as `python train_step.py DEPTH THREADS LAYOUT PRECISION COUNT SIDE`, for COUNT images of
SIDE x SIDE. LAYOUT is `first` or `last`: the position of the channels. PRECISION is `float32`, or `bfloat16` for
PyTorch's automatic mixed precision. Runs one step for each line on stdin and prints its seconds, so that the two
implementations can take turns.
"""
import sys
import time

import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

count, side = map(int, sys.argv[5:])
mixed = torch.autocast("cpu", torch.bfloat16, enabled=sys.argv[4] == "bfloat16")
torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(0)
backbone = resnet_fpn_backbone(
    backbone_name=f"resnet{sys.argv[1]}", weights=None, trainable_layers=5, returned_layers=[2, 3, 4],
    extra_blocks=LastLevelP6P7(256, 256))
layout = {"first": torch.contiguous_format, "last": torch.channels_last}[sys.argv[3]]
model = RetinaNet(backbone, num_classes=80, min_size=side, max_size=side).train().to(memory_format=layout)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
images = [torch.rand(3, side, side) for _ in range(count)]
boxes = torch.tensor([[20.0, 30, 120, 150], [100, 100, 300, 280], [200, 40, 260, 90]]) * (side / 320)
targets = [{"boxes": boxes, "labels": torch.tensor([1, 2, 3])} for _ in range(count)]

for _ in sys.stdin:
    start = time.perf_counter()
    with mixed:
        loss = sum(model(images, targets).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(time.perf_counter() - start, flush=True)
