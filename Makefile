# Every target sets up what it needs: on a fresh machine each is one command.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin

.PHONY: setup demo test bench

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crovca needs Python 3.11 or newer; say which with: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[report,dev]'
	touch $@

demo: $(READY)
	$(RUN)/crovca demo --report demo-report --force

test: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/pytest

bench: $(READY)
	$(RUN)/python benchmarks/training.py
	$(RUN)/python benchmarks/evaluation.py
	$(RUN)/python benchmarks/memory.py
