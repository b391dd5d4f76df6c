"""Checks ONNX files of `exporter` with other tools: check.py FOLDER FILE.onnx...

Every file must pass ONNX's full check and shape inference, and give the same outputs in ONNX Runtime at every
optimization level. The outputs without optimization are written to FOLDER/FILE, for comparison with other engines.
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort

LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
# Maximum difference between optimization levels. Optimization moves int8's rounding, so that values differ by a step.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 5e-2}


def run(path, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    read_bytes = session.get_inputs()[0].type == "tensor(uint8)"
    free = (2, 64, 96, 3) if read_bytes else (2, 3, 64, 96)
    shape = [size if isinstance(size, int) else free for size, free in zip(session.get_inputs()[0].shape, free)]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, shape, np.uint8) if read_bytes else random.normal(size=shape).astype(np.float32)
    inputs = {"images": images, "sizes": np.array([[60, 90], [64, 96]])}
    inputs = {value.name: inputs[value.name] for value in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    return images, dict(zip(names, session.run(names, inputs)))


def check(path):
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    known = {value.name for value in inferred.graph.value_info} | {value.name for value in inferred.graph.output}
    unknown = [name for node in model.graph.node for name in node.output if name not in known]
    assert not unknown, f"{path}: shape inference fails for {unknown[:5]}"
    names = [node.name for node in model.graph.node]
    assert all(names) and len(set(names)) == len(names), f"{path}: node names are missing or not unique"

    precision = next(entry.value for entry in model.metadata_props if entry.key == "retinanet.precision")
    images, reference = run(path, LEVELS[0])
    max_diff = 0.0
    for level in LEVELS[1:]:
        _, outputs = run(path, level)
        for name, values in outputs.items():
            if name in ("scores", "detection_scores"):
                # Rounding reorders candidates with nearly equal scores and adds or removes some at the threshold. Only the
                # sorted scores, with the threshold as minimum, are comparable.
                max_diff = max(max_diff, float(np.abs(np.maximum(values, 0.05) - np.maximum(reference[name], 0.05)).max()))
            elif values.dtype == np.float32 and not {"scores", "detection_scores"} & outputs.keys():
                scale = max(1.0, float(np.abs(reference[name]).max()))
                max_diff = max(max_diff, float(np.abs(values - reference[name]).max()) / scale)
    assert max_diff <= TOLERANCE[precision], f"{path}: optimization changes outputs by {max_diff}"
    opset = model.opset_import[0].version
    print(f"{pathlib.Path(path).name}: opset {opset}, IR {model.ir_version}, {len(names)} nodes, levels differ by {max_diff:.1e}")
    return images, reference


def main():
    folder = pathlib.Path(sys.argv[1])
    for path in sys.argv[2:]:
        images, reference = check(path)
        outputs = folder / pathlib.Path(path).stem
        outputs.mkdir(parents=True, exist_ok=True)
        (outputs / "shape").write_text(" ".join(map(str, images.shape)))
        images.tofile(outputs / "images")
        for name, values in reference.items():
            values.tofile(outputs / name)
    print(f"onnx {onnx.__version__}, onnxruntime {ort.__version__}: {len(sys.argv) - 2} files pass")


main()
