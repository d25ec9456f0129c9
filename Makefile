# Everything runs in .venv. The first target that needs .venv makes it; later targets start at once.
.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -euc
.PHONY: help setup train test test-all test-kernels test-machines test-fake-gpu bench docs lint wheel clean

PYTHON ?= python3
PRESET ?= quick
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install -c requirements/constraints.txt
LOCKED := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install --require-hashes --no-deps
SAY := printf 'make: %s\n'

# The ops are built again when a source changes, when FASTCIFAR_CUDA does, and when a compiler appears.
CXX_FOUND := $(shell command -v $${CXX:-g++} || command -v clang++ || command -v c++)
OPS := .venv/ops-cuda-$(or $(FASTCIFAR_CUDA),auto)$(if $(CXX_FOUND),,-no-compiler)
CXX_SOURCES := $(wildcard $(foreach ending,h cpp cu cuh,csrc/*.$(ending) csrc/*/*.$(ending) tests/emu/*.$(ending) tests/fake/*.$(ending)))
READY := $(OPS) .venv/installed

help: ## this list
	@echo 'make TARGET   (the first one installs everything into .venv)'
	sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 12
	echo 'PRESET=name, DATA=/path and ARGS="more arguments" go to the command; PYTHON=python3.12 makes .venv with that one.'
	echo 'FASTCIFAR_CUDA=0|1|wheel says whether the CUDA ops are built: see setup.py.'

train: $(READY) ## fastcifar train --preset $(PRESET), by default quick
	@exec $(BIN)/fastcifar train --preset $(PRESET) $(if $(DATA),--data "$(DATA)") $(ARGS)

# A file of tests at a time on each core: most of them start processes and wait. Benchmarks are another target.
# The bytecode is kept even if the environment says otherwise, because they start fastcifar hundreds of times.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -n auto --dist loadfile -p no:benchmark

test: $(READY) ## the quick tests, six minutes on two cores
	@exec $(PYTEST) $(ARGS)

test-all: $(READY) ## all tests
	@exec $(PYTEST) -m "" $(ARGS)

# Most of these tests are in a few files, and take their time in the compiler and the kernels.
test-kernels: $(READY) ## the CUDA kernels: compiled anew, and run on the CPU under sanitizers
	@exec $(PYTEST) --dist worksteal -m 'sanitized and not slow' $(ARGS)

# These variables make the extension's kernels, oneDNN and PyTorch's own kernels ignore newer instruction sets.
test-machines: $(READY) ## what depends on the machine, as two others: without AVX and one thread; with AVX2 alone
	@FASTCIFAR_ISA=generic ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 \
	  $(PYTEST) -m 'machine and not slow' -k 'not compiled' $(ARGS)
	if grep -qsw avx2 /proc/cpuinfo && ! grep -qsw avx512f /proc/cpuinfo; then
	  $(SAY) 'this processor is the second machine, with AVX2 and no more: `make test` has run the same tests'
	elif grep -qsw avx2 /proc/cpuinfo; then
	  FASTCIFAR_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m 'machine and not slow' -k 'not compiled' $(ARGS)
	else
	  $(SAY) 'this processor has no AVX2: the second machine is left out'
	fi

# FASTCIFAR_CUDA=1 and one architecture are enough here: the kernels are compiled and not run.
test-fake-gpu: $(READY) .venv-cuda/torch ## the whole program on a GPU that is not there, with a CUDA build of torch
	@ls build/objects/cuda-*/*.cu.o >/dev/null 2>&1 || { \
	  $(SAY) 'the CUDA ops are not built: FASTCIFAR_CUDA=1 FASTCIFAR_CUDA_ARCHS=90 make test-fake-gpu' >&2; exit 1; }
	.venv-cuda/bin/python -m pytest -n auto --dist worksteal -p no:benchmark tests/test_fake_gpu.py $(ARGS)

bench: $(READY) ## the benchmarks, five to ten minutes on two cores
	@exec $(BIN)/pytest bench/ --benchmark-only $(ARGS)

docs: $(READY) ## the site of docs/, in build/docs
	@$(PIP) properdocs properdocs-theme-mkdocs
	$(BIN)/properdocs build --quiet --strict
	$(SAY) 'build/docs/index.html'

lint: $(READY) ## ruff (rules and format), clang-format and mypy --strict
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/mypy

# WHEEL_TORCH has the torches to check with, such as WHEEL_TORCH='torch==2.10.0 torch==2.13.0'. PIP would pin torch.
WHEEL_TORCH ?= $(shell grep '^torch==' requirements/constraints.txt)

wheel: $(READY) ## one wheel for all Pythons and torches, in dist/; first checked in a new environment by a run
	@rm -rf build/wheel && mkdir -p build/wheel dist
	$(SAY) 'building the wheel'
	$(BIN)/python -m pip --disable-pip-version-check wheel -q --no-deps --no-build-isolation -w build/wheel .
	wheel=$$(echo "$$PWD"/build/wheel/fastcifar-*.whl)
	$(TORCH_INDEX)
	for torch in $(WHEEL_TORCH); do
	  $(SAY) "checking it with $$torch in build/clean, a new environment"
	  rm -rf build/clean && '$(PYTHON)' -m venv build/clean
	  cd build/clean
	  grep -v '^torch' ../../requirements/constraints.txt > constraints.txt
	  bin/python -m pip --disable-pip-version-check --no-input -qq install --no-deps $$index "$$torch"
	  bin/python -m pip --disable-pip-version-check --no-input -qq install -c constraints.txt "$$torch" "$$wheel"
	  bin/python -c 'import torch; from fastcifar import ops; found = ops.available("cpu"); print("  torch", torch.__version__, "ops", found); exit(not found)'
	  FASTCIFAR_DATA=cache bin/fastcifar train quick --device cpu --width-mult 0.125 --epochs 1 --out run 2>/dev/null
	  cd ../..
	done
	mv "$$wheel" dist/
	$(SAY) "dist/$$(basename "$$wheel")"

setup: $(READY) ## only the installation

clean: ## remove .venv and all that was built; runs/ and .venv-cuda stay
	rm -rf .venv build dist *.egg-info fastcifar/*.so fastcifar/_build.json .mypy_cache .pytest_cache .ruff_cache

# A shell command: sets $$index to what makes pip take PyTorch's CPU build, where there is no GPU and its server answers.
define TORCH_INDEX
index=
if [ ! -e /proc/driver/nvidia ] && ! nvidia-smi >/dev/null 2>&1 && timeout 8 $(BIN)/python -c \
  'import urllib.request as r; r.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=4)' >/dev/null 2>&1; then
  index='--index-url $(TORCH_CPU_INDEX)'
fi
endef

# PyTorch is installed alone, from an index that the user chooses, and without a hash for that reason: otherwise a package
# that needs torch brings its own, with GBs of CUDA libraries.
.venv/torch: requirements/constraints.txt requirements/lock.txt
	@if ! command -v '$(PYTHON)' >/dev/null; then
	  $(SAY) 'there is no $(PYTHON): install Python 3.10 or newer (apt install python3 python3-venv)' >&2; exit 1
	elif ! '$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
	  $(SAY) "Python 3.10 or newer is needed, and $(PYTHON) is $$('$(PYTHON)' -V 2>&1): try make PYTHON=python3.11" >&2; exit 1
	elif ! $(BIN)/python -m pip --version >/dev/null 2>&1; then
	  $(SAY) "making .venv with $$('$(PYTHON)' -V)"
	  rm -rf .venv
	  '$(PYTHON)' -m venv .venv || {
	    rm -rf .venv; $(SAY) 'no virtual environment could be made (apt install python3-venv)' >&2; exit 1; }
	fi
	$(TORCH_INDEX)
	$(SAY) 'installing what requirements/lock.txt names, each file checked by its hash'
	$(LOCKED) -r requirements/lock.txt
	$(SAY) "installing PyTorch from $${index:-the default index}, which can take minutes"
	$(PIP) --no-deps $$index torch torchvision
	touch $@

$(OPS): .venv/torch setup.py $(wildcard build_backend/*.py csrc/* csrc/*/*)
	@rm -f .venv/ops-*
	$(if $(filter wheel,$(FASTCIFAR_CUDA)),$(PIP) $$(PYTHONPATH=build_backend $(BIN)/python -c \
	  'import fastcifar_backend as backend; print(*backend.NVCC)'))
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@

# All but torch is .venv's: a .pth file names its packages, and what lies here comes before them.
.venv-cuda/torch: requirements/cuda.txt | .venv/installed
	@$(SAY) 'installing a CUDA build of PyTorch into .venv-cuda: 0.8 GB'
	rm -rf .venv-cuda
	$(BIN)/python -m venv --without-pip .venv-cuda
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  >"$$(.venv-cuda/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	$(BIN)/python -m pip --python .venv-cuda/bin/python --disable-pip-version-check --no-input -qq install --no-deps -r $<
	touch $@

# All that is needed is there by now, except the libraries of NVIDIA that a PyTorch for CUDA names itself.
.venv/installed: pyproject.toml requirements/constraints.txt requirements/lock.txt | $(OPS)
	@$(SAY) 'installing fastcifar'
	$(PIP) --no-build-isolation -e '.[dev]'
	$(PIP) --no-deps timm
	touch $@
