# Everything runs in .venv: the first target that needs it makes it, later ones start at once.
.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -euc
.PHONY: help setup train test test-all bench lint clean

PYTHON ?= python3
PRESET ?= quick
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
# One stamp for each way to build, made anew when what is installed or compiled changes, or a compiler appears.
HAS_CXX := $(shell command -v $${CXX:-g++} clang++ c++)
STAMP := .venv/ready-cuda-$(or $(FASTCIFAR_CUDA),auto)$(if $(HAS_CXX),,-no-compiler)
INPUTS := pyproject.toml setup.py requirements/constraints.txt $(wildcard build_backend/*.py csrc/* csrc/*/*)

help: ## this list
	@echo 'make TARGET   (the first one installs everything into .venv)'
	sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 12
	echo 'PRESET=name DATA=/path ARGS="more arguments" go to the command that runs; PYTHON=python3.12 makes .venv with it.'
	echo 'FASTCIFAR_CUDA=0|1|wheel chooses whether the CUDA ops are built: see setup.py.'

train: $(STAMP) ## train: fastcifar train --preset $(PRESET) [--data $(DATA)] $(ARGS)
	@exec $(BIN)/fastcifar train --preset $(PRESET) $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(STAMP) ## the quick tests, within five minutes on two cores
	@exec $(BIN)/pytest $(ARGS)

test-all: $(STAMP) ## all tests
	@exec $(BIN)/pytest -m "" $(ARGS)

bench: $(STAMP) ## the benchmarks, within five minutes on two cores
	@exec $(BIN)/pytest bench/ --benchmark-only $(ARGS)

lint: $(STAMP) ## ruff (rules and format) and mypy --strict
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(STAMP) ## only install

clean: ## remove .venv and all that was built; runs/ stays
	rm -rf .venv build dist *.egg-info fastcifar/*.so fastcifar/_build.json .mypy_cache .pytest_cache .ruff_cache

$(STAMP): $(INPUTS)
	@say() { printf '%s\n' "make: $$*" >&2; }
	command -v '$(PYTHON)' >/dev/null || {
	  say 'there is no $(PYTHON): install Python 3.10 or newer (apt install python3 python3-venv)'; exit 1; }
	'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
	  say "Python 3.10 or newer is needed, and $(PYTHON) is $$('$(PYTHON)' -V 2>&1): make PYTHON=/path/to/a/newer/python3 ..."; exit 1; }
	$(if $(HAS_CXX),,say 'there is no C++ compiler (apt install g++): fastcifar will run on its slower PyTorch reference')
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then
	  say "making .venv with $$('$(PYTHON)' -V)"
	  rm -rf .venv
	  '$(PYTHON)' -m venv .venv >.venv.log 2>&1 || {
	    cat .venv.log >&2; rm -rf .venv .venv.log; say 'no virtual environment could be made (apt install python3-venv)'; exit 1; }
	  rm -f .venv.log
	fi
	rm -f .venv/ready-*
	pip='$(BIN)/python -m pip --disable-pip-version-check --no-input -qq install -c requirements/constraints.txt'
	index=
	if [ ! -e /proc/driver/nvidia ] && ! nvidia-smi >/dev/null 2>&1 &&
	   timeout 8 $(BIN)/python -c 'import urllib.request as r; r.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=4)' >/dev/null 2>&1; then
	  index='--index-url $(TORCH_CPU_INDEX)'
	fi
	$$pip setuptools
	say "installing PyTorch ($${index:-from the default index}); this can take minutes"
	$$pip --no-deps $$index torch torchvision
	say 'installing the rest and building fastcifar'
	$$pip $(if $(filter wheel,$(FASTCIFAR_CUDA)),,--no-build-isolation) -e '.[dev]'
	$(BIN)/python -c 'import json; about = json.load(open("fastcifar/_build.json")); [print(
	  "make:", part.upper(), "ops", "are built:" if about[part]["built"] else "are not built:", about[part]["why"]
	) for part in ("cpu", "cuda")]' >&2
	touch $@
