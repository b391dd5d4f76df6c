#!/usr/bin/env bash
# The CUDA paths, wherever there is a GPU: a training step and a short fit, export, detections of the GPU equal to those
# of the CPU, and the time of both. Prints what tests/gpu/RESULTS.md records.
#
# usage: tests/gpu/check.sh BINARIES WORK
#   BINARIES  folder with trainer, exporter and runtime, built with CUDA=1 (default: target/release)
#   WORK      folder to work in; made anew (default: .gpu)
#
# The programs find libtorch by their rpath or LD_LIBRARY_PATH, ONNX Runtime's GPU library by ORT_DYLIB_PATH or as
# `runtime --help` says. Python 3 compares the results.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binaries=$(realpath "${1:-target/release}")
work=${2:-.gpu}
rm -rf "$work"
mkdir -p "$work"
cd "$work"

step() { printf '\n== %s\n' "$*"; }

step "machine"
date -u +%Y-%m-%d
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
for program in trainer exporter runtime; do "$binaries/$program" --version; done

step "fit on CUDA"
"$binaries/trainer" synth --out shapes --train 400 --val 50 --test 50 --seed 0
for device in cuda cpu; do
  epochs=$([ "$device" = cuda ] && echo 8 || echo 1)
  sed "s/^  epochs: .*/  epochs: $epochs/" "$here/../../trainer/configs/shapes.yaml" > "shapes-$device.yaml"
  "$binaries/trainer" fit --config "shapes-$device.yaml" --data shapes --device "$device" --out "run-$device"
done
python3 - <<'EOF'
import json
for device in ("cuda", "cpu"):
    lines = [json.loads(line) for line in open(f"run-{device}/log.jsonl")]
    first = next(line for line in lines if "gradient_norm" in line)
    epochs = [line for line in lines if "validation" in line]
    print(f"{device}: first step classification {first['classification']:.6f}, boxes {first['regression']:.6f}, "
          f"gradient norm {first['gradient_norm']:.4f}; {epochs[-1]['pictures_per_second']:.1f} pictures/s, "
          f"AP50 {epochs[-1]['validation']['AP50']:.4f} after {len(epochs)} epochs")
    if device == "cuda":
        on_gpu, ap50 = first, epochs[-1]["validation"]["AP50"]
# The same weights and the same batch: what differs is the arithmetic.
for part in ("classification", "regression"):
    assert abs(on_gpu[part] - first[part]) <= 0.01 * abs(first[part]), f"the first step differs in {part}"
assert ap50 > 0.5, "the detector has not learned on the GPU"
EOF

step "a step in both precisions"
for precision in float32 bfloat16; do
  sed "s/^run:/run:\\n  precision: $precision\\n  channels_last: true/" shapes-cuda.yaml > "bench-$precision.yaml"
  echo "$precision:"
  "$binaries/trainer" bench --config "bench-$precision.yaml" --device cuda --steps 50
done

step "evaluate on both"
for device in cuda cpu; do
  "$binaries/trainer" eval --checkpoint run-cuda/best.safetensors --data shapes/test.json --pictures shapes/test \
    --device "$device" --json "eval-$device.json" > /dev/null
done
python3 - <<'EOF'
import json
gpu, cpu = (json.load(open(f"eval-{device}.json"))["AP"] for device in ("cuda", "cpu"))
print(f"AP on the GPU {gpu:.4f}, on the CPU {cpu:.4f}")
assert abs(gpu - cpu) < 0.01
EOF

step "export"
"$binaries/exporter" --checkpoint run-cuda/best.safetensors --out retinanet.onnx

step "what runs here"
# TensorRT and OpenVINO may be missing; CUDA must not be.
"$binaries/runtime" doctor || true

step "detect on both"
# Inputs of one shape, for runs that are replayed.
"$binaries/exporter" --checkpoint run-cuda/best.safetensors --out fixed.onnx --input-size 192x192 --batch 4
detect() {
  local name=$1 start
  start=$(date +%s.%N)
  shift
  "$binaries/runtime" detect --json "$name.json" "$@" shapes/test
  echo "$name: $(python3 -c "import time; print(round(time.time() - $start, 2))") s with start-up"
}
detect cpu --model retinanet.onnx
detect cuda --model retinanet.onnx --provider cuda
detect batches --model retinanet.onnx --provider cuda --batch 4
detect fixed --model fixed.onnx --provider cuda
detect replayed --model fixed.onnx --provider cuda --cuda-graphs
cat > compare.py <<'EOF'
import json, sys
gpu, cpu = (json.load(open(f"{name}.json")) for name in (sys.argv[1], "cpu"))
assert [p["file"] for p in gpu] == [p["file"] for p in cpu]
worst_score = worst_box = 0.0
compared = 0
for a, b in list(zip(gpu, cpu)) + list(zip(cpu, gpu)):
    for x in a["detections"]:
        # A score at the threshold of 0.05 may fall on either side, so only what is above it is looked for.
        if x["score"] <= 0.06:
            continue
        y = min((y for y in b["detections"] if y["label"] == x["label"]),
                key=lambda y: sum(abs(p - q) for p, q in zip(x["box"], y["box"])), default=None)
        assert y is not None, f"{x} is on one side only"
        worst_score = max(worst_score, abs(x["score"] - y["score"]))
        worst_box = max(worst_box, max(abs(p - q) for p, q in zip(x["box"], y["box"])))
        compared += 1
print(f"{sys.argv[1]}: {compared} detections, both ways: scores differ by at most {worst_score:.2e}, boxes by at most {worst_box:.2e} pixels")
assert compared > 0 and worst_score <= 5e-3 and worst_box <= 0.5
EOF
for name in cuda batches fixed replayed; do python3 compare.py "$name"; done

step "16 bits, and candidates chosen on the GPU"
"$binaries/exporter" --checkpoint run-cuda/best.safetensors --out half.onnx --precision fp16 --top-k 1000
for model in retinanet half; do
  "$binaries/runtime" eval --model $model.onnx --provider cuda --data shapes/test.json --pictures shapes/test \
    --json "$model-eval.json" > /dev/null
done
python3 - <<'EOF'
import json
full, half = (json.load(open(f"{name}-eval.json"))["AP"] for name in ("retinanet", "half"))
print(f"AP in 32 bits {full:.4f}, in 16 with candidates {half:.4f}")
assert abs(full - half) < 0.01
EOF

step "time beside torchvision: ResNet-50, 80 classes, 800x1344, the same random weights"
python3 - <<'EOF'
import time, torch, torchvision
torch.manual_seed(0)
model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
torch.save(model.state_dict(), "random.pth")
model = model.cuda().eval()
for batch in (1, 8):
    images = torch.randn(batch, 3, 800, 1344).pin_memory()
    times = []
    with torch.inference_mode():
        for _ in range(60):
            start = time.perf_counter()
            features = list(model.backbone(images.cuda(non_blocking=True)).values())
            head = model.head(features)
            scores, boxes = head["cls_logits"].sigmoid().cpu(), head["bbox_regression"].cpu()
            times.append(time.perf_counter() - start)
    times = sorted(times[10:])
    print(f"torchvision, batches of {batch}: network with copies, median {times[len(times) // 2] / batch * 1e3:.2f} ms a picture")
EOF
"$binaries/trainer" import random.pth --kind torchvision-v1 --out random.safetensors > /dev/null
# Of random weights nothing is believed, so that the time is the network's.
for form in "" "--input-size 800x1344 --batch 1" "--top-k 1000" "--precision fp16"; do
  # shellcheck disable=SC2086
  "$binaries/exporter" --checkpoint random.safetensors --out random.onnx $form > /dev/null 2>&1 || { echo "not exported: $form"; continue; }
  graphs=$([[ $form == --input-size* ]] && echo --cuda-graphs || true)
  echo "== ResNet-50 $form $graphs"
  # shellcheck disable=SC2086
  "$binaries/runtime" bench --model random.onnx --provider cuda --score 0.99 --size 1333x800 --runs 50 --warm-up 10 \
    --by-batch "$([[ -n $graphs ]] && echo 1 || echo 1,8)" $graphs
done

step "all is well"
