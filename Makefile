# make demo   the embedded model on three photos; pictures, masks and annotations.json in demo/
# make app    the page, on http://127.0.0.1:7860
# make test   lint, types and tests
#
# Needs python3 (3.10 or newer, with venv) and make; everything else goes into .venv.

PYTHON ?= python3
# uv installs several times faster than pip and comes from the same registry; `make INSTALLER=pip` does without.
# The bytecode is compiled once, as pip does: tests start many processes, and where Python may not write bytecode each
# would compile all of torch anew.
INSTALLER ?= uv
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo app test lint pytest slow bench clean

install: $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/python
ifeq ($(INSTALLER),uv)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable ".[dev]"
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
endif
	touch $@

demo: $(INSTALLED)
	$(BIN)/textsam demo --out demo

app: $(INSTALLED)
	$(BIN)/python -m app

test: lint pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes of one thread each: tiny models gain nothing from more threads.
pytest: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

bench: $(INSTALLED)
	$(BIN)/textsam bench

clean:
	rm -rf $(VENV) build dist demo out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
