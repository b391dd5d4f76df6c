"""Small files of torch.save, in the containers and forms that people have.

    pip install torch==2.11.0 torchvision==0.26.0
    python pytorch_files.py     # writes trainer/tests/data/*.pth, which the trainer's tests read

Every tensor has the shape of the real network's and one number for all of its elements, a view of one small storage: so
the files are small. Tests need neither this script nor Python.
"""

import argparse
import collections
import sys
import types
from pathlib import Path

import torch
from torchvision.models import resnet18
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

FOLDER = Path(__file__).parents[2] / "trainer/tests/data"
STORAGE = torch.arange(1.0, 50.0) / 4096


def number(name):
    """The number of all elements: exact in 16 bits too."""
    return len(name) % 5


def view(name, shape):
    return STORAGE[number(name)].expand(shape)


def detector():
    """torchvision's RetinaNet of a ResNet-18: two classes and the background."""
    backbone = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    return RetinaNet(_resnet_fpn_extractor(backbone, 5, [2, 3, 4], LastLevelP6P7(256, 256)), 3)


def state_dict(model):
    names = model.state_dict().items()
    state = collections.OrderedDict((name, view(name, tensor.shape)) for name, tensor in names)
    # Columns before rows, as in a transposed tensor: element [.., y, x] is (7 x + y + 1) / 4096.
    stem = next(name for name in state if name.endswith("conv1.weight"))
    state[stem] = STORAGE.view(7, 7).t().expand(64, 3, 7, 7)
    state._metadata = getattr(model.state_dict(), "_metadata", None)
    return state


def with_views(model):
    """The module, with such tensors as parameters and buffers."""
    state = state_dict(model)
    for prefix, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    value = state[f"{prefix}.{name}" if prefix else name]
                    table[name] = torch.nn.Parameter(value, False) if table is module._parameters else value
    return model


class Net(torch.nn.Module):
    """A network whose class only its author has."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))


def save(name, value, **options):
    torch.save(value, FOLDER / name, **options)


def main():
    FOLDER.mkdir(exist_ok=True)
    state = state_dict(detector())
    save("state_dict.pth", state)
    beside = dict(optimizer={"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}, epoch=3)
    mixed = dict(state, **{name: STORAGE.half()[number(name)].expand(tensor.shape) for name, tensor in state.items() if tensor.dim() == 1})
    arguments = argparse.Namespace(lr=0.1, device=torch.device("cpu"))
    save("legacy.pth", dict(model=mixed, args=arguments, **beside), _use_new_zipfile_serialization=False)

    # A module of a class that no one else has.
    foreign = types.ModuleType("authors_own")
    Net.__module__ = foreign.__name__
    foreign.Net = Net
    sys.modules[foreign.__name__] = foreign
    save("module.pth", torch.nn.DataParallel(with_views(detector())))
    save("legacy_module.pth", Net(), _use_new_zipfile_serialization=False)
    save("backbone.pth", state_dict(resnet18(weights=None)), pickle_protocol=4)


main()
