"""Prints the expected numbers in trainer/src/optimizer.rs. Run with PyTorch 2.11.0: python tests/golden/optimizers.py"""
import torch

START = [1.0, -2.0, 0.5]
GRADIENTS = [[0.1, 0.2, -0.3], [0.4, -0.5, 0.6], [-0.7, 0.8, 0.9]]


def train(make):
    weights = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = make([weights])
    for gradient in GRADIENTS:
        weights.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return weights.tolist()


print("ADAMW", train(lambda w: torch.optim.AdamW(w, lr=0.1, weight_decay=0.01)))
print("SGD", train(lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.01)))
print("NESTEROV", train(lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)))
