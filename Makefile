# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
# Both prepare .venv by themselves, from complete pinned lists, and do nothing when that is done.

PYTHON ?= python3.11
ACCELERATOR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
REQUIREMENTS := conf/requirements/$(ACCELERATOR).txt
TORCH_CPU := https://download.pytorch.org/whl/cpu
BIN := .venv/bin
PACKAGES := .venv/.packages-$(ACCELERATOR)
READY := .venv/.ready-$(ACCELERATOR)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
# Real problems and traces, inputs with their right values, real tokenizers: tests that read them say so where they are absent.
ifneq ($(wildcard ../shared/data),)
export BREVITY_TEST_DATA ?= $(abspath ../shared/data)
endif
ifneq ($(wildcard ../shared/cases),)
export BREVITY_TEST_CASES ?= $(abspath ../shared/cases)
endif
ifneq ($(wildcard ../shared/tokenizers),)
export BREVITY_TEST_TOKENIZERS ?= $(abspath ../shared/tokenizers)
endif

.PHONY: setup packages demo claims test test-fast check format tiny-model tiny-vision-model bench

setup: $(READY)

packages: $(PACKAGES)

# The CPU build of torch is on no common package index: the configured places are asked first, PyTorch's own index second.
ifeq ($(ACCELERATOR),cpu)
INSTALL_TORCH = torch=$$(grep -E '^torch==' $(REQUIREMENTS)); \
	$(PIP) "$$torch" 2>/dev/null || $(PIP) --index-url $(TORCH_CPU) "$$torch"
else
INSTALL_TORCH = true
endif

# CPU and GPU builds share names and versions, so one list is never installed over the other.
$(PACKAGES): $(REQUIREMENTS)
	@[ -e $@ ] || ! ls .venv/.packages-* >/dev/null 2>&1 || rm -rf .venv
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing the pinned packages of $(REQUIREMENTS) into .venv (a few minutes, once) ..."
	@$(INSTALL_TORCH)
	@$(PIP) -r $(REQUIREMENTS)
	@touch $@

$(READY): $(PACKAGES) pyproject.toml
	@$(PIP) --no-build-isolation --editable .
	@touch $@

demo: setup
	@$(BIN)/python -m flows run dto --preset tiny

# Three seeds with all controls, of each pipeline (DTO: 107 minutes when it was last run, beside other work); writes the
# tables of docs/results.md, docs/claims-*.svg and docs/outcomes.
claims: setup
	@$(BIN)/python -m flows run multi-seed --preset dto --set publish_dir=.
	@$(BIN)/python -m flows run multi-seed --preset cot-distillation --set publish_dir=.
	@$(BIN)/python -m flows run multi-seed --preset long-short --set publish_dir=.
	@$(BIN)/python -m flows run multi-seed --preset tiny-vision --set publish_dir=.

# Files run side by side, in their order: the slow ones come first. On a GPU one after another: each server takes most of its memory.
ifeq ($(ACCELERATOR),cpu)
SIDE_BY_SIDE = -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
endif

test: setup check
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: setup
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not stack"

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo >/dev/null || $(BIN)/lint-imports
	@$(BIN)/pyright --warnings

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The rollout executor against doing it plainly; the store; memory. Results in bench/results, the picture in docs.
bench: setup
	@$(BIN)/python -m bench.rollouts
	@$(BIN)/python -m bench.plots
	@$(BIN)/python -m bench.store
	@$(BIN)/python -m bench.memory

# Re-makes the bundled model from nothing and measures it into its card.
tiny-model: setup
	@$(BIN)/python -m flows run tiny-model

tiny-vision-model: setup
	@$(BIN)/python -m flows run tiny-vision-model
