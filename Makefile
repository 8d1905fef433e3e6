# Every target sets up what it needs: on a fresh machine each is one command.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin

.PHONY: setup demo servers test bench

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crovca needs Python 3.11 or newer; say which with: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[report,images,augment,onnx,ray,pg,milvus,dev]'
	touch $@

demo: $(READY)
	$(RUN)/crovca demo --report demo-report --force

# Servers that tests of clusters start; where one cannot be installed its tests skip, and say so.
servers: $(READY)
	$(RUN)/python tests/servers/setup.py

test: servers
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/pytest

# DATA: embeddings (.npz) to make real codes of; without it codes are random.
bench: servers
	$(RUN)/python benchmarks/training.py
	$(RUN)/python benchmarks/evaluation.py
	$(RUN)/python benchmarks/memory.py
	mkdir -p build
	$(RUN)/python benchmarks/search.py $(if $(DATA),--data $(DATA)) --servers --out build/search
	$(RUN)/python benchmarks/clusters.py --json build/clusters.json
