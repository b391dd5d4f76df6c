#!/usr/bin/env bash
# Checks in at most 330 seconds that CUDA computes the same as the CPU: training steps, a short training, detection with
# every variant of ONNX file, evaluation, repeated starts. Most important steps first. Options: steps.sh.
#
# usage: [BIN=DIR] [OUT=DIR] tests/gpu/check.sh [--dry-run]
# The functions are called by `step`.
# shellcheck disable=SC2329
name=check budget=310
# shellcheck source=tests/gpu/steps.sh
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

if [[ $dry ]]; then
    images=(--train 96 --val 2 --test 8) epochs=1 starts=2 steps=2 side=64 min_ap50=0
else
    images=(--train 1000 --val 50 --test 200) epochs=8 starts=20 steps=50 side=192 min_ap50=0.5
fi
export epochs starts steps side min_ap50

machine() {
    date -u +%Y-%m-%d
    if [[ ! $dry ]]; then nvidia-smi; fi
    local program
    for program in trainer exporter runtime; do "$bin/$program" --version; done
    "$bin/runtime" doctor --json doctor.json
    "$here/figures.py" doctor doctor.json "$device" | tee "$figures"
}

draw() {
    "$bin/trainer" synth --out shapes "$@"
    "$bin/trainer" synth --out few --train 16 --val 2 --test 0
}

# config EPOCHS [LINE]: prints shapes.yaml with another number of epochs and an additional line in `run`.
config() { sed -e "s/^  epochs: .*/  epochs: $1/" -e "s/^run:/&\n  ${2:-seed: 0}/" "$root/trainer/configs/shapes.yaml"; }

# Trains with the same weights, batches and augmentation on the tested device and on the CPU.
first_steps() {
    config 1 >first.yaml
    local side
    for side in tested reference; do
        NVIDIA_TF32_OVERRIDE=0 "$bin/trainer" fit --config first.yaml --data few --out "$side" \
            --device "$([[ $side == tested ]] && echo "$device" || echo cpu)"
    done
    "$here/figures.py" first-steps {tested,reference}/log.jsonl | tee "$figures"
}

# Trains again as the only process of a group, whose sums NCCL computes on CUDA, and Gloo on the CPU.
group_of_one() {
    needs tested/log.jsonl
    local port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    RANK=0 WORLD_SIZE=1 MASTER_PORT=$port NCCL_DEBUG=INFO NVIDIA_TF32_OVERRIDE=0 \
        "$bin/trainer" fit --config first.yaml --data few --out group --device "$device" --group-timeout 30 | tee group.txt
    if [[ ! $dry ]]; then grep -q "NCCL INFO" group.txt; fi
    "$here/figures.py" first-steps {group,tested}/log.jsonl | tee "$figures"
}

# other_training NAME FLAG...: trains a few steps in a way that the other steps do not; a loss that is not finite fails.
other_training() {
    needs first.yaml
    "$bin/trainer" fit --config first.yaml --data few --device "$device" --out "$1" "${@:2}"
}

fit() {
    config "$epochs" >fit.yaml
    "$bin/trainer" fit --config fit.yaml --data shapes --device "$device" --out run
    "$here/figures.py" fit run/log.jsonl "$min_ap50" | tee "$figures"
}

# export_as FILE FLAG...: exports the trained checkpoint.
export_as() {
    needs run/best.safetensors
    "$bin/exporter" --checkpoint run/best.safetensors --out "$@"
}

# detect NAME FILE FLAG...: writes the detections of FILE to NAME.json.
detect() {
    needs "$2"
    "$bin/runtime" detect --model "$2" --json "$1.json" --min-score 0.05 "${@:3}" shapes/test
}

# agree NAME UNMATCHED SCORE FILE FLAG...: detects with FILE and compares with retinanet.onnx on the CPU. Allows the
# fraction UNMATCHED of unmatched detections and the score difference SCORE. Detections close to the threshold of 0.05
# may be unmatched.
agree() {
    needs cpu.json
    detect "$1" "$4" --provider "$device" "${@:5}"
    "$here/compare.py" "$1.json" cpu.json --min-score 0.06 --max-unmatched "$2" --max-score-difference "$3" |
        tee "$figures"
}

agree_without_tf32() { NVIDIA_TF32_OVERRIDE=0 agree "$@"; }

# bench PRECISION: times training steps without checking their results.
bench() {
    config 1 "precision: $1\n  channels_last: true" >"$1.yaml"
    "$bin/trainer" bench --config "$1.yaml" --device "$device" --steps "$steps" --width "$side" --height "$side" \
        --json bench.json
    "$here/figures.py" train bench.json | tee "$figures"
}

evaluate() {
    needs run/best.safetensors retinanet.onnx
    local side
    for side in "$device" cpu; do
        "$bin/trainer" eval --checkpoint run/best.safetensors --device "$side" --json "trainer-$side.json" \
            --data shapes/test.json --images shapes/test
        "$bin/runtime" eval --model retinanet.onnx --provider "$side" --json "runtime-$side.json" \
            --data shapes/test.json --images shapes/test
    done
    "$here/figures.py" eval {trainer,runtime}-*.json | tee "$figures"
}

# Runs the program repeatedly, since it could detect everything and crash at exit.
start() {
    needs retinanet.onnx
    local number failed=0
    for ((number = 1; number <= starts; number++)); do
        "$bin/runtime" detect --model retinanet.onnx --provider "$device" shapes/test/00000.png >/dev/null ||
            { echo "start $number: exit code $?" && failed=$((failed + 1)); }
        echo "{\"starts\": $number, \"failed\": $failed}" >"$figures"
    done
    ((failed == 0))
}

export -f machine draw config first_steps group_of_one other_training fit export_as detect agree agree_without_tf32 bench evaluate start

step "machine" 30 machine
step "draw shapes" 40 draw "${images[@]}"
step "first steps of training" 40 first_steps
step "fit" 110 fit
step "first steps in a group of one" 30 group_of_one
step "train with live norms, bytes, float16" 40 other_training live --set model.backbone.norm.kind=batch \
    --set model.preprocessing.round_pixels=true --set run.precision=float16
step "export" 20 export_as retinanet.onnx
step "detect on the CPU" 30 detect cpu retinanet.onnx --provider cpu
step "detect without TF32" 20 agree_without_tf32 float32 0.001 1e-4 retinanet.onnx
step "detect" 20 agree tf32 0.01 5e-3 retinanet.onnx
if [[ ! $dry ]]; then
    step "detect with --no-tf32" 20 agree flag 0.001 1e-4 retinanet.onnx --no-tf32
fi
step "detect in batches" 20 agree batches 0.01 5e-3 retinanet.onnx --batch-size 8
# Padding affects group norm, so the fixed size is the input size of shapes.yaml.
step "export, fixed size" 20 export_as fixed.onnx --input-size 96x96 --batch-size 4
step "detect, fixed size" 20 agree fixed 0.01 5e-3 fixed.onnx
if [[ ! $dry ]]; then step "detect, CUDA graphs" 20 agree graphs 0.01 5e-3 fixed.onnx --cuda-graphs; fi
step "export, fp16" 20 export_as fp16.onnx --precision fp16
step "detect, fp16" 20 agree fp16 0.02 5e-3 fp16.onnx
step "export, fp16 and top-k" 20 export_as top-k.onnx --precision fp16 --top-k 1000
step "detect, fp16 and top-k" 20 agree top-k 0.02 5e-3 top-k.onnx --batch-size 8
step "evaluate" 60 evaluate
step "train in float32" 30 bench float32
step "train in bfloat16" 30 bench bfloat16
step "starts" 100 start
finish
