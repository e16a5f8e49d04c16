# make demo    a GLB of a red mushroom, from nothing but this checkout and a package registry
# make test    install everything the tests need, then every check
# make check   format, lint, types, import contracts, tests
#
# PYTHON names the interpreter that makes the environment (3.11 or newer), VENV its folder.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

PROMPT ?= a red mushroom
PRESET ?= fast
OUT ?= outputs

.DEFAULT_GOAL := help
.PHONY: help demo test check format clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# Each stamp is written last, so that an interrupted install is done again. `venv` without --clear
# is safe on a folder that exists already.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: no $(PYTHON) found: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python 3.11 or newer is needed and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	@echo "Installing sds3d into $(VENV): some minutes the first time"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml
	@echo "Installing sds3d and its checks into $(VENV): some minutes the first time"
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	@touch $@ $(VENV)/.installed

# The command's last line on stdout is the folder of the run; progress goes to stderr.
demo: $(VENV)/.installed
	@lines=$$($(BIN)/sds3d generate "$(PROMPT)" --preset $(PRESET) --out "$(OUT)") && \
	  run=$$(printf '%s\n' "$$lines" | tail -n 1) && test -f "$$run/mesh.glb" && \
	  echo "The mesh is $$run/mesh.glb (open it in any glTF viewer); pictures of it: $$run/preview.png"

test: check

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest --durations=15

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
