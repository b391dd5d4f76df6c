"""Small files of torch.save, in the formats and layouts found in practice.

    pip install torch==2.11.0 torchvision==0.26.0
    python pytorch_files.py     # writes trainer/tests/data/*.pth, which the trainer's tests read

Every tensor has its real shape, but is a view of one element of a shared storage, which keeps the files small. Tests need
neither this script nor Python.
"""

import argparse
import collections
import pickle
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
    """Index into STORAGE of the value of all elements, which is exact in float16 too."""
    return len(name) % 5


def view(name, shape):
    return STORAGE[number(name)].expand(shape)


def detector(outputs=3):
    """torchvision's RetinaNet with ResNet-18: two classes and the background."""
    backbone = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    return RetinaNet(_resnet_fpn_extractor(backbone, 5, [2, 3, 4], LastLevelP6P7(256, 256)), outputs)


def state_dict(model):
    names = model.state_dict().items()
    state = collections.OrderedDict((name, view(name, tensor.shape)) for name, tensor in names)
    # A transposed (not contiguous) tensor: element [.., y, x] is (7 x + y + 1) / 4096.
    stem = next(name for name in state if name.endswith("conv1.weight"))
    state[stem] = STORAGE.view(7, 7).t().expand(64, 3, 7, 7)
    state._metadata = getattr(model.state_dict(), "_metadata", None)
    return state


def with_views(model):
    """The module, with views of STORAGE as parameters and buffers."""
    state = state_dict(model)
    for prefix, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    value = state[f"{prefix}.{name}" if prefix else name]
                    table[name] = torch.nn.Parameter(value, False) if table is module._parameters else value
    return model


class Net(torch.nn.Module):
    """A module whose class is not available where the file is read."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))


def save(name, value, **options):
    torch.save(value, FOLDER / name, **options)


def deepforest():
    """As DeepForest's main.py (on_save_checkpoint) and Lightning write it: two classes and no background."""
    state = {f"model.{name}": tensor for name, tensor in state_dict(detector(2)).items()}
    labels = {"Alive": 0, "Dead": 1}
    config = dict(num_classes=2, label_dict=labels, nms_thresh=0.05, score_thresh=0.1, train=dict(lr=0.001, csv_file=None))
    checkpoint = {"epoch": 4, "global_step": 100, "pytorch-lightning_version": "2.5.0", "state_dict": state, "loops": {},
                  "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}],
                  "hyper_parameters": {"config": config}, "label_dict": labels, "numeric_to_label_dict": {0: "Alive", 1: "Dead"}}
    save("deepforest.ckpt", checkpoint)


def detectron2():
    """As tools of Detectron2 pickle weights: numpy arrays under names of theirs; three of them only."""
    arrays = {
        "backbone.bottom_up.stem.conv1.weight": torch.arange(64.0 * 3 * 7 * 7).view(64, 3, 7, 7).numpy(),
        "backbone.top_block.p7.bias": torch.arange(256.0).numpy().astype(">f4"),
        "head.cls_score.bias": torch.arange(720.0).double().numpy(),
    }
    arrays |= {name: arrays["head.cls_score.bias"][:9].reshape(9, 1, 1, 1) for name in ["head.cls_score.weight", "backbone.top_block.p7.weight"]}
    (FOLDER / "detectron2.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=2))


def main():
    FOLDER.mkdir(exist_ok=True)
    state = state_dict(detector())
    save("state_dict.pth", state)
    other_entries = dict(optimizer={"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}, epoch=3)
    mixed = dict(state, **{name: STORAGE.half()[number(name)].expand(tensor.shape) for name, tensor in state.items() if tensor.dim() == 1})
    arguments = argparse.Namespace(lr=0.1, device=torch.device("cpu"))
    save("legacy.pth", dict(model=mixed, args=arguments, **other_entries), _use_new_zipfile_serialization=False)

    # A module of a class that is not available where the file is read.
    author_module = types.ModuleType("authors_own")
    Net.__module__ = author_module.__name__
    author_module.Net = Net
    sys.modules[author_module.__name__] = author_module
    save("module.pth", torch.nn.DataParallel(with_views(detector())))
    save("legacy_module.pth", Net(), _use_new_zipfile_serialization=False)

    # Whole modules in the old format, without the source code of their classes.
    def no_source(_):
        raise OSError

    torch.serialization.get_source_lines_and_file = no_source
    save("legacy_detector.pth", with_views(detector()), _use_new_zipfile_serialization=False)
    deepforest()
    detectron2()
    save("backbone.pth", state_dict(resnet18(weights=None)), pickle_protocol=4)


main()
