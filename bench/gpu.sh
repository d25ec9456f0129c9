#!/usr/bin/env bash
# For anybody who has a GPU for ten minutes: what is right and how fast. Each stage writes its results as it ends, and a
# stage that is cut writes what it has, so that being cut off loses nothing. A stage that fails is named, and the next one
# goes on.
#
#   bench/gpu.sh DATA [STAGE ...]       DATA: CIFAR-100 in any layout; all stages but the last two if none is named
#
#   facts     GPU, driver, cuDNN, power limit and clocks
#   build     the extension, for the GPU that is here
#   check     what doctor finds, the ops' check of themselves, forward and backward, among it: what `auto` asks for
#   steps     images/s of the captured step of every engine and precision, at batch 128 and 1024
#   converge  lr-0.05, 15 epochs of the fused engine in bf16
#   train     two epochs of the fused engine in fp16, and deterministic
#   sanitize  compute-sanitizer: memcheck, racecheck, initcheck and synccheck over every op
#   tests     the ops against their references, a hundred times to the same bit, in captured graphs; whole steps; runs
#             that are trained together
#   final     300 epochs
#   speedrun  60 epochs
#   ops       every layer of the network against cuDNN, eager and torch.compile, with a warm and with a cold L2
#   profile   where a step's time goes, and how far each layer is from what copies and products reach here
#   ablate    what each choice is worth; only if it is named
#   loaders   images/s of every loader; only if it is named
#
# The order is that of worth: the first minutes say what is right and how fast a step is. train, sanitize and tests run at
# the same time: none of their times is a result. On an H100 or H200 with 16 cores all stages but the last two should take
# about eight minutes; the limits of the stages are 15 minutes in sum. Measured there: check 22 s, final 80 to 97, speedrun 23
# to 30; alone, tests 58, and the four tools of sanitize 70. Estimated: build 30, converge 12, train, sanitize and tests
# together 100, steps 80, ops 90, profile 30.
#
# Results: bench/results/<device>-<date>-torch<version>-<commit>-<stage>.*; ...-stages.txt says how long each stage took.
# Python is that of .venv, if there is one, else python3; PYTHON=... names another.
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 2; }
data=$1
shift
[ -e "$data" ] || { echo "gpu.sh: DATA = $data does not exist" >&2; exit 3; }
usual=(facts build check steps converge train sanitize tests final speedrun ops profile)
all=("${usual[@]}" ablate loaders)
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=("${usual[@]}")
for s in "${stages[@]}"; do
  [[ " ${all[*]} " == *" $s "* ]] || { echo "gpu.sh: no stage $s: the stages are ${all[*]}" >&2; exit 2; }
done
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

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
: >"$results-stages.txt"

stage() { # stage NAME SECONDS COMMAND...: runs the command if the stage is asked for; keeps its output as a log
  local stage=$1 limit=$2 start=$SECONDS
  shift 2
  [[ " ${stages[*]} " == *" ${stage%%-*} "* ]] || return 0
  echo "== $stage"
  # SIGINT first: pytest and fastcifar then write what they have.
  timeout --foreground --signal=INT --kill-after=20 "$limit" "$@" 2>&1 | tee "$results-$stage.log" | tail -n 60
  local code=${PIPESTATUS[0]} took=$((SECONDS - start))
  echo "== $stage: exit code $code after $took s" | tee -a "$results-$stage.log"
  printf '%-20s %4d s%s\n' "$stage" $took "$([ "$code" -eq 0 ] || echo ", exit code $code")" >>"$results-stages.txt"
}

bench() { # bench STAGE SECONDS FILE ... [OPTION ...]: runs benchmarks; their numbers go into the results
  local stage=$1 limit=$2
  shift 2
  stage "$stage" "$limit" "$python" -m pytest -q -p no:cacheprovider --benchmark-only \
    "--benchmark-json=$results-$stage.json" "$@"
}

run() { # run STAGE SECONDS PRESET [OPTION ...]: trains once; metrics and summary go into the results
  local stage=$1 limit=$2 preset=$3 out
  shift 3
  out=runs/gpu/$name-$stage-$(date +%H%M%S)
  stage "$stage" "$limit" "$python" -m fastcifar train --preset "$preset" --data "$data" --out "$out" "$@"
  [ ! -f "$out/metrics.jsonl" ] || cat "$out/metrics.jsonl" "$out/summary.json" >"$results-$stage.jsonl" 2>/dev/null
}

sanitize() { # runs the four tools at once, without PyTorch's memory pool, which would hide where a tensor ends
  local tool code=0
  local -A pids
  set -m # each tool and the program that it watches are a group: none must run on beside what is timed next
  trap 'kill -KILL -- "${pids[@]/#/-}"; exit 1' INT TERM
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not here (it comes with the CUDA toolkit, or as nvidia-cuda-sanitizer-api from PyPI): the ops were not run under it"
    return 0
  fi
  for tool in memcheck racecheck initcheck synccheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" tests/op_launches.py cuda $([ $tool = racecheck ] && echo 7) >"$results-sanitize-$tool.log" 2>&1 &
    pids[$tool]=$!
  done
  for tool in memcheck racecheck initcheck synccheck; do
    if wait "${pids[$tool]}"; then echo "$tool: clean"; else code=1; echo "$tool: see $results-sanitize-$tool.log"; fi
    grep -E "calls on|ERROR SUMMARY|RACECHECK SUMMARY" "$results-sanitize-$tool.log"
  done
  return $code
}

facts() { # what the figures depend on beside the code
  "$python" -c 'import json; from fastcifar.run import environment; print(json.dumps(environment.collect("auto")))' \
    >"$results-facts.json"
  nvidia-smi --query-gpu=name,driver_version,vbios_version,power.limit,power.max_limit,clocks.max.sm,clocks.max.mem,pcie.link.gen.current,persistence_mode \
    --format=csv | tee "$results-facts.csv" || echo "nvidia-smi is not here: the power limit is not recorded"
}

check() { # fails where doctor finds a problem
  "$python" -m fastcifar doctor | awk '{ print; fflush() } /^problem/ { found = 1 } END { exit found }'
}
export python results
export -f facts check sanitize
stage facts 30 bash -c facts
stage build 90 env FASTCIFAR_CUDA=1 "FASTCIFAR_CUDA_ARCHS=${FASTCIFAR_CUDA_ARCHS:-native}" \
  "$python" setup.py build_ext --inplace
stage check 60 bash -o pipefail -c check
bench steps 170 bench/test_training_step.py
run converge 40 lr-0.05 --engine fused --precision bf16 --epochs 15

run train-fp16 60 lr-0.05 --engine fused --precision fp16 --epochs 2 &
run train-deterministic 60 lr-0.05 --engine fused --precision bf16 --deterministic --epochs 2 &
stage sanitize 150 bash -c sanitize &
# Several processes: most of the time is PyTorch's start, and the references.
"$python" -c 'import xdist' 2>/dev/null && processes=(-n 12) || processes=()
stage tests 150 "$python" -m pytest -q "${processes[@]}" -p no:cacheprovider -p no:benchmark \
  -k "cuda or on_a_gpu or steps or same_bits" tests/test_ops_*.py tests/test_steps.py tests/test_together.py
wait

run final 150 final
run speedrun 50 speedrun
# Each layer in bf16 at batch 128, what training runs first: about 120 races of 0.4 s, and 9 layers to compile
bench ops 100 -k "not torch.float32 and not torch.float16" bench/test_separable_block.py \
  bench/test_depthwise_block.py bench/test_stem.py bench/test_batch_norm_relu_pool.py bench/test_classifier_gradient.py \
  bench/test_sgd.py bench/test_training_batch.py bench/test_update_statistics.py bench/test_batch_norm_relu.py \
  bench/test_dwconv3x3_affine_relu.py bench/test_mixup_cross_entropy_gradient.py bench/test_mixup_cross_entropy.py \
  bench/test_dwconv3x3.py
stage profile 60 "$python" -m fastcifar profile --engine fused --out "runs/gpu/$name-profile-$(date +%H%M%S)"
stage ablate 900 "$python" -m fastcifar ablate --out "runs/gpu/$name-ablate-$(date +%H%M%S)"
bench loaders 240 bench/test_loader.py

printf '%-20s %4d s\n' "all of it" $SECONDS >>"$results-stages.txt"
cat "$results-stages.txt"
failed=$(sed -n 's/ .*exit code.*//p' "$results-stages.txt" | xargs)
[ -z "$failed" ] || { echo "gpu.sh: failed: $failed (logs: $results-*.log)" >&2; exit 1; }
echo "gpu.sh: done: $results-*"
