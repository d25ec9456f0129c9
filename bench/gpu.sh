#!/usr/bin/env bash
# For anybody who has a GPU for an hour: what is right and how fast, each stage writing its results as it ends, so that
# being cut off loses nothing. A stage that fails is named and the next one goes on.
#
#   bench/gpu.sh DATA [STAGE ...]       DATA: CIFAR-100 in any layout; all stages if none is named
#
# Stages: build, tests, ops (depthwise against cuDNN), steps (images/s of every engine), converge (lr-0.05, 15 epochs),
# final (300 epochs). Results: bench/results/<device>-<date>-torch<version>-<commit>-<stage>.*
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
data=$1
shift
[ -e "$data" ] || { echo "gpu.sh: DATA = $data does not exist" >&2; exit 3; }
all=(build tests ops steps converge final)
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=("${all[@]}")
for s in "${stages[@]}"; do
  [[ " ${all[*]} " == *" $s "* ]] || { echo "gpu.sh: no stage $s: the stages are ${all[*]}" >&2; exit 2; }
done
python=${PYTHON:-python3}

name=$("$python" - <<'PY'
import datetime, re, subprocess, torch
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip() or "none"
text = f"{device}-{datetime.date.today()}-torch{torch.__version__}-{commit}"
print(re.sub(r"[^A-Za-z0-9._-]+", "-", text))
PY
) || { echo "gpu.sh: $python has no torch; name another with PYTHON=..." >&2; exit 1; }
results=bench/results/$name
mkdir -p bench/results
failed=()

stage() { # stage NAME SECONDS COMMAND...: runs it if asked for, its output beside the results
  local stage=$1 limit=$2 start=$SECONDS
  shift 2
  [[ " ${stages[*]} " == *" $stage "* ]] || return 0
  echo "== $stage"
  timeout "$limit" "$@" 2>&1 | tee "$results-$stage.log" | tail -n 60
  local code=${PIPESTATUS[0]}
  echo "== $stage: exit code $code after $((SECONDS - start)) s"
  [ "$code" -eq 0 ] || failed+=("$stage")
}

run() { # run STAGE SECONDS PRESET [OPTION ...]: one training run, its metrics and summary into the results
  local stage=$1 limit=$2 preset=$3 out
  shift 3
  out=runs/gpu/$name-$stage-$(date +%H%M%S)
  stage "$stage" "$limit" "$python" -m fastcifar train --preset "$preset" --data "$data" --out "$out" "$@"
  [ ! -f "$out/metrics.jsonl" ] || cat "$out/metrics.jsonl" "$out/summary.json" >"$results-$stage.jsonl" 2>/dev/null
}

stage build 300 env FASTCIFAR_CUDA=1 FASTCIFAR_CUDA_ARCHS=native "$python" setup.py build_ext --inplace
stage tests 240 "$python" -m pytest -q tests/test_ops_augment.py tests/test_ops_batch_norm_relu.py \
  tests/test_ops_dwconv3x3.py tests/test_ops_depthwise_block.py tests/test_ops_dwconv3x3_affine_relu.py
stage ops 180 "$python" -m pytest -q bench/ --benchmark-only --ignore=bench/test_training_step.py \
  --ignore=bench/test_loader.py "--benchmark-json=$results-ops.json"
stage steps 240 "$python" -m pytest -q bench/test_training_step.py bench/test_loader.py --benchmark-only --full \
  "--benchmark-json=$results-steps.json"
run converge 240 lr-0.05
run final 560 final

[ ${#failed[@]} -eq 0 ] || { echo "gpu.sh: failed: ${failed[*]} (logs: $results-*.log)" >&2; exit 1; }
echo "gpu.sh: done: $results-*"
