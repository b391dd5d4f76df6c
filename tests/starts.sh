#!/usr/bin/env bash
# Runs `runtime detect` with 20,000 file names on the command line, and 1,000 times with one: all must succeed and leave no
# files in HOME and TMPDIR. Takes about ten minutes; `make test` does the same with 2,000 names and 50 starts.
#
# usage: tests/starts.sh MODEL [PROGRAM]
#   MODEL    ONNX file of a small network, such as .demo/retinanet.onnx
#   PROGRAM  the program `runtime` (default: target/release/runtime)
set -euo pipefail
model=$(realpath "${1:?usage: tests/starts.sh MODEL [PROGRAM]}")
program=$(realpath "${2:-target/release/runtime}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/home" "$work/tmp" "$work/images"
# These turn off ONNX Runtime's telemetry or redirect its files, so the test would prove nothing.
unset CI GITHUB_ACTIONS ORT_RUNNING_UNIT_TESTS ORT_DISABLE_TELEMETRY XDG_CACHE_HOME XDG_DATA_HOME
logs() { find /tmp -maxdepth 1 -name 'mat-debug-*.log' | sort; }
logs >"$work/logs"
detect() { env HOME="$work/home" TMPDIR="$work/tmp" "$program" detect --model "$model" "$@" 2>>"$work/stderr"; }

# A gray image of 64x64 as BMP: 54 bytes of header, then the pixels.
image="$work/images/0.bmp"
printf 'BM\x36\x30\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x40\0\0\0\x40\0\0\0\x01\0\x18\0\0\0\0\0\0\x30\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' >"$image"
head -c 12288 /dev/zero | tr '\0' '\200' >>"$image"
names=()
for number in $(seq 20000); do
    ln "$image" "$work/images/$number.bmp"
    names+=("$number.bmp")
done
found=$(cd "$work/images" && detect --ndjson - "${names[@]}" | grep -c '"detections"')
echo "20,000 file names: detections for $found"
starts=0
for number in $(seq 1000); do
    if (cd "$work/images" && detect --ndjson - "$number.bmp" >/dev/null); then starts=$((starts + 1)); fi
done
echo "1,000 starts: $starts succeeded"
left=$(($(find "$work/home" "$work/tmp" -mindepth 1 | wc -l) + $(logs | comm -13 "$work/logs" - | wc -l)))
echo "files left behind: $left"
[[ $found == 20000 && $starts == 1000 && $left == 0 ]]
