#!/usr/bin/env bash
# Tests and benchmarks on a machine with a GPU, in one command, without network or Rust, within ten minutes.
#
#   benches/gpu_check.sh [--wheel FILE] [--out FOLDER] [--short] [--cpu]
#
# --wheel  the wheel of this version, built elsewhere; without it the octavo that is installed is checked
# --out    where results go (benches/results)
# --short  within six minutes: the kernels' tests, fewer rounds, the smaller model
# --cpu    without a GPU: do the scripts themselves work? Tiny sizes, and figures that mean nothing
#
# Needs torch, triton and numpy; pytest, transformers and safetensors for the tests and the peer. What is not there is named
# and left out. Exit code 1 if a test or a benchmark failed.
set -uo pipefail
cd "$(dirname "$0")/.."

wheel= out=benches/results cpu= short= budget=590
while [ $# -gt 0 ]; do
    case $1 in
        --wheel) wheel=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --short) short=1 budget=350; shift ;;
        --cpu) cpu=1; shift ;;
        *) sed -n '2,13p' "$0" >&2; exit 2 ;;
    esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1
began=$SECONDS failed=()
python=${PYTHON:-python3}

if [ -n "$wheel" ]; then
    # Beside the machine's packages, which bring torch; nothing is fetched.
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$wheel" || exit 1
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
has() { "$python" -c "import importlib.util as u, sys; sys.exit(not all(u.find_spec(m) for m in sys.argv[1:]))" "$@"; }

# run NAME SECONDS COMMAND...: within its own time and what is left of the whole.
run() {
    local name=$1 limit=$2 left=$((budget - (SECONDS - began)))
    shift 2
    [ "$left" -lt "$limit" ] && limit=$left
    [ "$limit" -lt 5 ] && { echo "=== $name: no time left" >&2; failed+=("$name (no time)"); return; }
    printf '\n=== %s (at most %s s)\n' "$name" "$limit"
    timeout "$limit" "$@" || failed+=("$name (exit code $?)")
}

"$python" - <<'PY' | tee "$out/gpu_machine.json"
import json, sys
from octavo.gpu import device
print(json.dumps({"python": sys.version.split()[0], **device.state()}, indent=1))
PY

if has pytest transformers safetensors; then
    tests=(tests/triton_kernels tests/gpu)
    [ -n "$short" ] && tests=(tests/triton_kernels tests/gpu/test_gpu_kernels.py tests/gpu/test_gpu_graphs.py tests/gpu/test_gpu_adapters.py)
    [ -n "$cpu" ] && tests=(tests/gpu/test_gpu_graphs.py)
    run tests "$([ -n "$short" ] && echo 110 || echo 200)" "$python" -m pytest -q -x --maxfail=20 -p no:cacheprovider "${tests[@]}"
else
    echo "tests left out: pytest, transformers or safetensors is not installed" >&2
fi
if [ -n "$cpu" ]; then
    TRITON_INTERPRET=1 run kernels 180 "$python" -m benches.gpu --check
else
    run kernels "$([ -n "$short" ] && echo 90 || echo 130)" "$python" -m benches.gpu --out "$out/gpu_kernels.json"
fi
model=(--out "$out")
[ -n "$cpu" ] && model+=(--device cpu --shapes tiny --rounds 1 --prompt-tokens 8 --tokens 4 --batches 1 2)
[ -n "$short" ] && [ -z "$cpu" ] && model+=(--shapes llama-3.2-1b --rounds 2)
has transformers || model+=(--no-peer)
run models "$([ -n "$short" ] && echo 115 || echo 215)" "$python" benches/gpu_model.py "${model[@]}"
adapters=(--out "$out")
[ -n "$cpu" ] && adapters+=(--device cpu --shape tiny --sequences 4 --adapters 1 2 --rounds 1)
[ -n "$short" ] && [ -z "$cpu" ] && adapters+=(--shape llama-3.2-1b)
run adapters "$([ -n "$short" ] && echo 30 || echo 40)" "$python" benches/gpu_adapters.py "${adapters[@]}"

printf '\n=== %s s, results in %s\n' "$((SECONDS - began))" "$out"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
