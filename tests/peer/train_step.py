"""Times torchvision's RetinaNet at one training step, forward to optimizer: 2 pictures of 320x320, 80 classes.

Started by tests/benches/train_step.rs as `python train_step.py DEPTH THREADS LAYOUT`, with the layout first or last; it answers every line on stdin with the
seconds of one step, so that the two sides can take turns.
"""
import sys
import time

import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(0)
backbone = resnet_fpn_backbone(
    backbone_name=f"resnet{sys.argv[1]}", weights=None, trainable_layers=5, returned_layers=[2, 3, 4],
    extra_blocks=LastLevelP6P7(256, 256))
layout = {"first": torch.contiguous_format, "last": torch.channels_last}[sys.argv[3]]
model = RetinaNet(backbone, num_classes=80, min_size=320, max_size=320).train().to(memory_format=layout)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
images = [torch.rand(3, 320, 320) for _ in range(2)]
boxes = torch.tensor([[20.0, 30, 120, 150], [100, 100, 300, 280], [200, 40, 260, 90]])
targets = [{"boxes": boxes, "labels": torch.tensor([1, 2, 3])} for _ in range(2)]

for _ in sys.stdin:
    start = time.perf_counter()
    loss = sum(model(images, targets).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(time.perf_counter() - start, flush=True)
