# Shared by check.sh and bench.sh: paths, and steps that fail independently of each other. Before sourcing this file they set
# `name` and `budget`, the time limit in seconds for all steps.
#
#   --dry-run  runs small cases on the CPU, to test the scripts themselves
#   BIN        folder with trainer, exporter and runtime (default: target/release of the checkout or kit)
#   OUT        folder for $name.jsonl, one line per step, and $name.log, all output (default: .gpu)
# shellcheck shell=bash disable=SC2154
set -u
export LC_ALL=C PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=$(realpath "${BIN:-$root/target/release}")
out=${OUT:-$root/.gpu}
mkdir -p "$out"
out=$(realpath "$out")
log=$out/$name.log
results=$out/$name.jsonl
: >"$log"
: >"$results"
case ${1:-} in
'') dry='' device=cuda ;;
# One thread, since several threads are slow on a machine that runs other tests at the same time.
--dry-run) dry=1 device=cpu && export OMP_NUM_THREADS=1 ;;
*) echo "usage: $name.sh [--dry-run]" >&2 && exit 2 ;;
esac

# A kit contains neither sources nor libtorch and CUDA; it uses those of Python's PyTorch.
if [[ ! -e $root/Cargo.toml ]]; then
    torch=$(python3 -c 'import importlib.util as i; print(i.find_spec("torch").submodule_search_locations[0])') ||
        { echo "error: python3 has no torch, whose libtorch and CUDA the kit needs" >&2 && exit 2; }
    ln -sfn "$torch" "$root/.deps/libtorch"
    ln -sfn "$(dirname "$torch")/nvidia" "$root/.deps/nvidia"
    export LD_LIBRARY_PATH=$root/.deps/libtorch/lib:$root/.deps/nvidia/cu13/lib:$root/.deps/nvidia/cudnn/lib
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2
# A step can write JSON to $figures, which becomes part of its result line.
export figures=$work/figures.json here root bin device dry
declare -A count=([passed]=0 [failed]=0 [skipped]=0)

# step NAME SECONDS COMMAND...: runs a command or an exported function with a time limit and reports the outcome.
step() {
    local title=$1 limit=$2 left=$((budget - SECONDS)) start=$EPOCHREALTIME code=0 memory sampler
    shift 2
    if ((left < 5)); then
        report "$title" skipped 0 null "the time limit of $budget seconds is reached"
        return
    fi
    ((limit <= left)) || limit=$left
    rm -f "$figures"
    sample_memory >memory.txt &
    sampler=$!
    # shellcheck disable=SC2016
    timeout --kill-after=5 "$limit" bash -euo pipefail -c '"$@"' step "$@" >output.txt 2>&1 </dev/null || code=$?
    kill "$sampler" 2>/dev/null
    wait "$sampler" 2>/dev/null
    memory=$(sort -n memory.txt | tail -n 1)
    { echo "== $title: $*" && cat output.txt && echo; } >>"$log"
    set -- "$(((${EPOCHREALTIME/./} - ${start/./}) / 1000))e-3" "${memory:-null}"
    case $code in
    0) report "$title" passed "$@" "" ;;
    77) report "$title" skipped "$@" "$(tail -n 1 output.txt)" ;;
    124 | 137) report "$title" failed "$@" "stopped after $limit seconds" ;;
    *) report "$title" failed "$@" "exit code $code" ;;
    esac
}

# Prints the GPU memory in use, in MiB, twice a second; nothing without a GPU.
sample_memory() {
    while nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --id=0 2>/dev/null; do sleep 0.5; done
}

# report NAME OUTCOME SECONDS MEMORY REASON: appends a line to $results and prints the outcome.
report() {
    local values=null
    if [[ -s $figures ]]; then values=$(tr -d '\n' <"$figures"); fi
    count[$2]=$((count[$2] + 1))
    printf '{"step": "%s", "outcome": "%s", "seconds": %s, "gpu_memory_mib": %s, "reason": "%s", "figures": %s}\n' \
        "$1" "$2" "$3" "$4" "$5" "$values" >>"$results"
    printf '%-8s%7.1f s  %s%s%s\n' "$2" "$3" "$1" "${5:+: $5}" "$([[ $values == null ]] || echo "  $values")"
    if [[ $2 == failed ]]; then tail -n 8 output.txt | cut -c 1-300 | sed 's/^/    | /'; fi
}

# needs FILE...: skips the step if an earlier step did not make its input.
needs() {
    local file
    for file; do
        if [[ ! -e $file ]]; then echo "missing input $file" && exit 77; fi
    done
}
export -f needs

# Prints a summary and exits with 0 if every step passed.
finish() {
    echo "$name: ${count[passed]} passed, ${count[failed]} failed, ${count[skipped]} skipped in $SECONDS s; see $results, $log"
    ((count[failed] + count[skipped] == 0))
    exit
}
