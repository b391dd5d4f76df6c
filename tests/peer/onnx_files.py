"""ONNX files to compare ours with: torchvision's RetinaNet (80 classes, without anchors and box decoding) exported by
PyTorch, and our float32 file quantized by ONNX Runtime: onnx_files.py FOLDER, which contains our fp32.onnx.
"""

import pathlib
import sys
import warnings

import numpy as np
import onnx
import torch
import torchvision
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

warnings.filterwarnings("ignore")
folder = pathlib.Path(sys.argv[1])


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.retinanet = torchvision.models.detection.retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=80
        )

    def forward(self, images):
        outputs = self.retinanet.head(list(self.retinanet.backbone(images).values()))
        return torch.sigmoid(outputs["cls_logits"]), outputs["bbox_regression"]


class Images(CalibrationDataReader):
    def __init__(self):
        noise = np.random.default_rng(0).normal(size=(1, 3, 640, 832)).astype(np.float32)
        self.rest = iter([{"images": noise}])

    def get_next(self):
        return next(self.rest, None)


torch.manual_seed(0)
axes = {"images": {0: "N", 2: "H", 3: "W"}, "classification": {0: "N", 1: "A"}, "regression": {0: "N", 1: "A"}}
torch.onnx.export(
    Network().eval(),
    (torch.zeros(1, 3, 640, 832),),
    str(folder / "torchvision.onnx"),
    input_names=["images"],
    output_names=["classification", "regression"],
    dynamic_axes=axes,
    opset_version=17,
    dynamo=False,
)

ours = str(folder / "fp32.onnx")
prepared = str(folder / "prepared.onnx")
quant_pre_process(ours, prepared, skip_symbolic_shape=True)
nodes = [node.name for node in onnx.load(prepared).graph.node]
excluded = [name for name in nodes if name == "conv1" or ".output" in name]
quantize_static(
    prepared,
    str(folder / "quantizer.onnx"),
    Images(),
    quant_format=QuantFormat.QDQ,
    activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8,
    per_channel=True,
    nodes_to_exclude=excluded,
)
