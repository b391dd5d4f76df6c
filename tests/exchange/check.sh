#!/bin/bash
# Checks every variant of ONNX file that `exporter` writes with ONNX's checker, ONNX Runtime and tract:
#
#     tests/exchange/check.sh CHECKPOINT IMAGES
#
# CHECKPOINT is any checkpoint of `trainer` with `preprocessing.round_pixels`, IMAGES a folder of calibration images for int8. Needs `make build` and
# Python with pip. Installs ONNX and ONNX Runtime in a temporary folder, and builds tract (two minutes).
set -euo pipefail
checkpoint=$(realpath "$1") images=$(realpath "$2")
here=$(dirname "$(realpath "$0")") root=$(dirname "$(dirname "$(dirname "$(realpath "$0")")")")
exporter=${EXPORTER:-$root/target/release/exporter}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "exporting ..."
export_as() { # NAME FLAGS...
    local name=$1
    shift
    "$exporter" --checkpoint "$checkpoint" --out "$work/$name.onnx" "$@" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    files+=("$work/$name.onnx")
}
int8=(--precision int8 --calibrate "$images" --calibration-images 2)
files=()
export_as fp32
for opset in $(seq 13 26); do
    export_as "fp32-$opset" --opset $opset
    export_as "fp16-$opset" --opset $opset --precision fp16
    export_as "int8-$opset" --opset $opset "${int8[@]}"
done
export_as external --external-data
# Every combination of the README's table.
for precision in fp32 fp16 int8; do
    flags=(--precision $precision)
    [ $precision = int8 ] && flags=("${int8[@]}")
    for opset in 13 18 26; do
        for input in float32 uint8; do
            for size in "" "--input-size 64x96 --batch-size 2"; do
                for output in "" "--top-k 50" "--end-to-end"; do
                    name=$precision-$opset-$input${size:+-fixed}${output:+-${output//[^a-z]/}}
                    # shellcheck disable=SC2086
                    export_as "$name" "${flags[@]}" --opset $opset --input $input $size $output
                    if [ $opset = 18 ]; then
                        # shellcheck disable=SC2086
                        "$exporter" --quiet --checkpoint "$checkpoint" --out "$work/second.onnx" "${flags[@]}" --opset $opset \
                            --input $input $size $output
                        cmp "$work/second.onnx" "$work/$name.onnx"
                    fi
                done
            done
        done
    done
done

echo "checking with onnx and ONNX Runtime ..."
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.30.0 numpy
"$work/venv/bin/python" "$here/check.py" "$work/expected" "${files[@]}"

echo "comparing with tract ..."
cargo build --quiet --release --manifest-path "$here/tract/Cargo.toml" --target-dir "${TRACT_TARGET:-$work/tract}"
tract=${TRACT_TARGET:-$work/tract}/release/exchange-tract
for name in fp32 external fp32-18-float32-fixed fp32-13-float32-topk fp32-18-float32-topk fp32-18-float32-fixed-topk; do
    "$tract" "$work/$name.onnx" "$work/expected/$name"
done
echo "all checks passed"
