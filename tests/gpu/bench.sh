#!/usr/bin/env bash
# Measures the speed on CUDA in at most 360 seconds: RetinaNet with ResNet-50 and 80 classes, training at 800x1344 and
# detection at 800x800, compared with torchvision (PyTorch eager, same GPU). Most important steps first. Options: steps.sh.
#
# usage: [BIN=DIR] [OUT=DIR] tests/gpu/bench.sh [--dry-run]
# The functions are called by `step`.
# shellcheck disable=SC2329
name=bench budget=340
# shellcheck source=tests/gpu/steps.sh
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

# Sizes are height x width of the network's input; image files have width x height.
if [[ $dry ]]; then
    depth=18 height=64 width=96 batch=2 batches=1,2 fixed_batch=2 steps=2 runs=2 warm_up=1 group=2
else
    depth=50 height=800 width=1344 batch=8 batches=1,8,16 fixed_batch=16 steps=30 runs=480 warm_up=64 group=6
fi
export depth height width batch batches fixed_batch steps runs warm_up group

machine() {
    date -u +%Y-%m-%d
    if [[ ! $dry ]]; then nvidia-smi; fi
    "$bin/runtime" doctor
}

# config PRECISION: prints a training configuration.
config() {
    cat <<YAML
data: {train: {annotations: train.json, images: train}, validation: {annotations: val.json, images: val}}
optimizer: {kind: sgd, learning_rate: 0.00001, weight_decay: 0.0001}
run: {epochs: 1, batch_size: $batch, workers: $(nproc), precision: $1, channels_last: true}
model:
  backbone: {depth: $depth, norm: {kind: frozen_batch}}
  preprocessing: {shorter_side: $height, longer_side: $width, round_pixels: true}
  postprocessing: {top_k: 1000, max_detections: 100}
  classes: $(classes)
YAML
}

# Prints 80 classes as JSON, which is also YAML.
classes() { python3 -c 'import json; print(json.dumps([{"id": i, "name": f"class {i}"} for i in range(1, 81)]))'; }
export -f classes config

train() {
    config "$1" >"$1.yaml"
    "$bin/trainer" bench --config "$1.yaml" --device "$device" --steps "$steps" --width "$width" --height "$height" \
        --json "train-$1.json"
    "$here/figures.py" train "train-$1.json" | tee "$figures"
}

# peer TASK PRECISION SIZE BATCHES RUNS OUR_RESULT...: runs torchvision and compares its times with our result files.
peer() {
    needs "${@:6}"
    "$here/peer.py" "$1" --precision "$2" --size "$3" --batches "$4" --runs "$5" --device "$device" --depth "$depth" \
        >peer.json
    "$here/figures.py" ratios peer.json "${@:6}" | tee "$figures"
}

# Makes a checkpoint with initial weights. Their low scores give no detections, so that only the network's time counts.
checkpoint() {
    rm -rf shapes
    "$bin/trainer" synth --out shapes --width "$height" --height "$height" --train 1 --val 1 --test 0
    local split
    for split in train val; do
        python3 - "shapes/$split.json" "$(classes)" <<'PY'
import json, sys
truth = json.load(open(sys.argv[1]))
truth["categories"] = json.loads(sys.argv[2])
json.dump(truth, open(sys.argv[1], "w"))
PY
    done
    config float32 >checkpoint.yaml
    "$bin/trainer" fit --config checkpoint.yaml --data shapes --device "$device" --out run
}

# export_as FILE FLAG...: exports the checkpoint.
export_as() {
    needs run/last.safetensors
    "$bin/exporter" --checkpoint run/last.safetensors --out "$@"
}

# detect FILE BATCHES FLAG...: measures detection for each batch size.
detect() {
    needs "$1"
    "$bin/runtime" bench --model "$1" --provider "$device" --min-score 0.99 --size "${height}x$height" --runs "$runs" \
        --warm-up "$warm_up" --batch-sizes "$2" --json "${1%.onnx}.json" "${@:3}"
    "$here/figures.py" detect "${1%.onnx}.json" | tee "$figures"
}

# in_order NAME IMAGE...: measures detection of these images in this order.
in_order() {
    "$bin/runtime" bench --model fp32.onnx --provider "$device" --min-score 0.99 --batch-sizes 1 \
        --runs $((4 * group)) --warm-up $((2 * group)) --json "$1.json" "${@:2}"
}

# Measures images of two shapes, first alternating, then grouped by shape.
shapes() {
    needs fp32.onnx
    local shape number alternating=()
    for shape in "$height" "$width"; do
        rm -rf "$shape"
        "$bin/trainer" synth --out "$shape" --width "$shape" --height "$height" --train "$group" --val 0 --test 0
    done
    for ((number = 0; number < group; number++)); do
        alternating+=({"$height","$width"}"/train/0000$number.png")
    done
    in_order alternating "${alternating[@]}"
    in_order grouped {"$height","$width"}/train
    "$here/figures.py" shapes alternating.json grouped.json "$group" | tee "$figures"
}

export -f machine train peer checkpoint export_as detect in_order shapes

with_peer=1
if [[ $dry ]] && ! python3 -c 'import importlib.util as i; exit(not (i.find_spec("torch") and i.find_spec("torchvision")))'; then
    echo "torchvision is not installed; skipping the comparison"
    with_peer=
fi

step "machine" 30 machine
for precision in bfloat16 float32; do
    # The first of them also loads libtorch and cuDNN.
    step "train, $precision" 80 train "$precision"
    if [[ $with_peer ]]; then
        step "train, $precision, torchvision" 45 peer train "$precision" "${height}x$width" "$batch" "$steps" \
            "train-$precision.json"
    fi
done
step "make a checkpoint" 40 checkpoint
step "export, fp16 and top-k" 30 export_as fp16-top-k.onnx --precision fp16 --top-k 1000
step "detect, fp16 and top-k" 40 detect fp16-top-k.onnx "$batches"
step "export, fp16, uint8, top-k and fixed size" 30 export_as uint8.onnx --precision fp16 --top-k 1000 --input uint8 \
    --input-size "${height}x$height" --batch-size "$fixed_batch"
step "detect, fp16, uint8, two instances" 40 detect uint8.onnx "$fixed_batch" --instances 2
step "export, fp32" 30 export_as fp32.onnx
step "detect, fp32" 40 detect fp32.onnx "$batches"
step "export, fp16" 30 export_as fp16.onnx --precision fp16
step "detect, fp16" 40 detect fp16.onnx "$batches"
if [[ $with_peer ]]; then
    step "detect, fp16, torchvision" 40 peer detect float16 "${height}x$height" "$batches" "$runs" fp16{-top-k,}.json
    step "detect, fp32, torchvision" 40 peer detect float32 "${height}x$height" "$batches" "$runs" fp32.json
fi
step "shapes, alternating and grouped" 60 shapes
step "export, fp16, fixed size" 30 export_as fixed.onnx --precision fp16 --input-size "${height}x$height" --batch-size "$fixed_batch"
step "detect, fp16, fixed size" 30 detect fixed.onnx "$fixed_batch"
if [[ ! $dry ]]; then step "detect, CUDA graphs" 30 detect fixed.onnx "$fixed_batch" --cuda-graphs; fi
finish
