# Two commands, each complete on a machine that has Python >= 3.11 and make:
#   make demo   create .venv, install, prune a small network on scikit-learn's digits; ends with a table and the report's path
#   make test   create .venv, install with the development tools, run every check
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
DEMO := build/demo
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# A network as small as the demo's or the tests' gains nothing from a second thread, and on a busy machine loses a lot.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint types imports licences pytest clean

help: ## list these targets
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 12

# ---- the environment ----------------------------------------------------------------------------------------------

$(RUNTIME): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: '$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make: $(PYTHON) is Python %d.%d; dtp-deploy needs 3.11 or newer. Name one: make PYTHON=python3.11" % sys.version_info[:2])'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing dtp-deploy into $(VENV) (PyTorch is large: this takes a minute or two) ..."
	@$(PIP_INSTALL) --editable .
	@touch $@

$(DEV): $(RUNTIME)
	@echo "Installing the development tools into $(VENV) ..."
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

install: $(DEV) ## create .venv with the development tools

# ---- the demo -----------------------------------------------------------------------------------------------------

$(DEMO)/digits.pt: | $(RUNTIME)
	$(BIN)/python examples/train_classifier.py --model examples.digits_cnn:make_model --data digits --epochs 20 --seed 0 --out $@

demo: $(RUNTIME) $(DEMO)/digits.pt ## train a small network, prune it to 30 % of its MACs, measure it
	$(BIN)/dtp-deploy compress $(DEMO)/digits.pt --model examples.digits_cnn:make_model --target cpu --macs 30% \
	    --data digits --input 1x1x8x8 --epochs 12 --seed 0 --out $(DEMO)/compressed --force

# ---- the checks ---------------------------------------------------------------------------------------------------

test: lint types imports licences pytest ## every check; what CI runs

lint: $(DEV) ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## mypy --strict
	$(BIN)/mypy

imports: $(DEV) ## who may import whom
	$(BIN)/lint-imports

licences: $(DEV) ## every dependency's licence against the allow-list
	$(BIN)/python tests/check_licences.py

pytest: $(DEV) ## tests and doctests, with branch coverage; warnings are errors
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term --durations=25

clean: ## remove what these targets made, except .venv
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
