# Everything a person or CI does with this repository. `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Each lock is one stamp: what it pins is installed again only when it changes.
RUN    := $(VENV)/.installed-quickstart
DEV    := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help quickstart setup check format test unit oracle fault engines parity parity-demo lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(RUN) ## install, get a small real model, serve it on 127.0.0.1:8080
	@$(BIN)/unigate quickstart

setup: $(DEV) ## make .venv with everything for development

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found; install Python 3.11 or newer, or run: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1), and Unigate needs 3.11 or newer; run: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "--> making the virtual environment $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: no virtual environment could be made; on Debian or Ubuntu: apt install python3-venv"; exit 1; }

$(RUN): $(VENV)/bin/python requirements/quickstart.txt pyproject.toml
	@echo "--> installing Unigate and its embedded llama.cpp"
	@$(BIN)/python -m pip install --require-hashes -r requirements/quickstart.txt
	@$(BIN)/python -m pip install --no-deps -e .
	@touch $@

$(DEV): $(VENV)/bin/python requirements/dev.txt pyproject.toml
	@echo "--> installing Unigate with everything for development"
	@$(BIN)/python -m pip install --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --no-deps -e .
	@touch $@ $(RUN)

check: $(DEV) ## ruff, mypy strict, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(DEV) ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: $(DEV) engines ## all tests, with the real engines
	$(BIN)/pytest

unit: $(DEV) ## the quick tests: pure decisions and properties
	$(BIN)/pytest tests/unit tests/property

oracle: $(DEV) engines ## our rendering beside transformers', on 786 published templates
	$(BIN)/pytest tests/oracle

# Everything but the rows of the matrix; two models that do not fit together, for three minutes; then the matrix, which is
# shown and written down.
fault: $(DEV) engines ## what happens when things break: every engine with every fault, written to docs/fault-matrix.md
	UNIGATE_INTERLEAVINGS=500 $(BIN)/pytest tests/fault tests/property/test_lifecycle.py tests/property/test_supervisor.py \
		--hypothesis-profile=thorough --deselect tests/fault/test_matrix.py::test_every_promise_is_kept
	$(BIN)/python -m tests.fault.alternation --seconds 180
	$(BIN)/python -m tests.fault.matrix --write docs/fault-matrix.md

# A download of 37 MB the first time, for llama.cpp's templates; what was observed is kept, so it can be interrupted.
parity: $(DEV) engines ## every prompt of 131 templates watched on the real engines, written to docs/parity.md
	$(BIN)/python -m tests.parity --write docs/parity.md

parity-demo: $(DEV) engines ## fine-tune with LLaMA-Factory, serve it raw and through Unigate; the table of the READMEs
	$(BIN)/python -m tests.parity_demo

engines: $(DEV) ## build the engines' own environments under ~/.cache/unigate
	$(BIN)/python -m tests.engines.environment

# The locks hold no address, so that the index or mirror of the environment is used.
LOCK := $(BIN)/uv pip compile --quiet --no-emit-index-url --universal --python-version 3.11 --generate-hashes --no-header
lock: $(DEV) ## resolve the dependencies anew
	$(LOCK) pyproject.toml -o requirements/core.txt
	$(LOCK) pyproject.toml --extra llamacpp -o requirements/quickstart.txt
	$(LOCK) pyproject.toml --all-extras -o requirements/dev.txt

clean: ## remove .venv and caches; models and engine environments stay under ~/.cache/unigate
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
