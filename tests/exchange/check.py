"""What programs of other makers say of files that `exporter` wrote: check.py FOLDER FILE.onnx...

Every file passes ONNX's checker with full checks, and shape inference, and computes in ONNX Runtime the same at every level
of optimization. What ONNX Runtime computed without optimization goes into FOLDER/FILE, for other engines.
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort

LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
# 8-bit rounding is done elsewhere after optimization: the difference of a step in some value inside.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 5e-2}


def run(path, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shape = [size if isinstance(size, int) else free for size, free in zip(session.get_inputs()[0].shape, (2, 3, 64, 96))]
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    return images, dict(zip(names, session.run(names, {"images": images})))


def check(path):
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    known = {value.name for value in inferred.graph.value_info} | {value.name for value in inferred.graph.output}
    unknown = [name for node in model.graph.node for name in node.output if name not in known]
    assert not unknown, f"{path}: no type is inferred for {unknown[:5]}"
    names = [node.name for node in model.graph.node]
    assert all(names) and len(set(names)) == len(names), f"{path}: nodes without a name of their own"

    precision = next(entry.value for entry in model.metadata_props if entry.key == "retinanet.precision")
    images, plain = run(path, LEVELS[0])
    worst = 0.0
    for level in LEVELS[1:]:
        _, outputs = run(path, level)
        for name, values in outputs.items():
            if name == "scores":
                # Candidates change places where scores are all but equal, and go where one is at the threshold. In order, and
                # none below it, the scores themselves hardly change.
                worst = max(worst, float(np.abs(np.maximum(values, 0.05) - np.maximum(plain[name], 0.05)).max()))
            elif values.dtype == np.float32 and "scores" not in outputs:
                scale = max(1.0, float(np.abs(plain[name]).max()))
                worst = max(worst, float(np.abs(values - plain[name]).max()) / scale)
    assert worst <= TOLERANCE[precision], f"{path}: optimization changes outputs by {worst}"
    opset = model.opset_import[0].version
    print(f"{pathlib.Path(path).name}: opset {opset}, IR {model.ir_version}, {len(names)} nodes, levels differ by {worst:.1e}")
    return images, plain


def main():
    folder = pathlib.Path(sys.argv[1])
    for path in sys.argv[2:]:
        images, plain = check(path)
        answers = folder / pathlib.Path(path).stem
        answers.mkdir(parents=True, exist_ok=True)
        (answers / "shape").write_text(" ".join(map(str, images.shape)))
        images.tofile(answers / "images")
        for name, values in plain.items():
            values.tofile(answers / name)
    print(f"onnx {onnx.__version__}, onnxruntime {ort.__version__}: {len(sys.argv) - 2} files pass")


main()
