"""The scale and the growth tracker of PyTorch's GradScaler, for trainer/src/loss_scaler.rs."""

import torch

scaler = torch.amp.GradScaler("cpu")
weight = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.SGD([weight], lr=0.0)
for step in range(1, 4003):
    weight.grad = torch.full((1,), float("inf") if step == 2001 else 1.0)
    scaler.scale(torch.zeros(1))
    scaler.step(optimizer)
    scaler.update()
    if step in (1, 1999, 2000, 2001, 2002, 4001, 4002):
        print(step, scaler.get_scale(), scaler._get_growth_tracker())
