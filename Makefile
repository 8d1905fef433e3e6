# Every target sets up what it needs: on a fresh machine each is one command.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin
# Two processes of one thread each: as fast as two threads, and steadier. What is compiled is kept, whatever the shell
# says; a plugin that comes along with langchain takes seconds to import, and is not used.
TEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(RUN)/pytest -p no:langsmith_plugin -n 2

.PHONY: setup demo demo-photos servers javascript pictures lint check test coverage docs ci torture repeat wheel lowest bench

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "crovca needs Python 3.11 or 3.12; say which with: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet 'pip>=25.1'
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --group dev --group docs --editable '.[report,images,augment,heic,onnx,serve,duplicates,sentence-transformers,langchain,llama-index,ray,pg,milvus,sqlite,lancedb,chdb,qdrant]'
	touch $@

demo: $(READY)
	$(RUN)/crovca demo --report demo-report --archive demo-archive --force

# The same with photographs: make demo-photos ROOT=photos ENCODER=folder-or-id
demo-photos: $(READY)
	$(RUN)/crovca archive init $(ROOT) --encoder $(ENCODER) -o demo-photos
	$(RUN)/crovca archive sync demo-photos
	@echo 'To search them with pictures, in the browser: $(RUN)/crovca serve demo-photos'

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/hadolint Dockerfile
	$(RUN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml

# Under a minute on two cores.
check: lint
	$(TEST) -m 'not slow and not servers and not ray and not torture'

# Everything but the long runs; a server that is not installed is skipped, and named.
test: lint
	$(TEST) -m 'not torture'

coverage: $(READY)
	$(TEST) -m 'not torture' --cov --cov-report=term

# The site, in build/site: offline, in seconds; a warning is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

# PostgreSQL, pgvector and Milvus, for their tests (Debian, root).
servers: $(READY)
	$(RUN)/python tests/servers/setup.py

# As .ci/run does it: every server must be there, and the wheel must work where nothing else is installed.
ci: servers
	CROVCA_SERVERS=required $(MAKE) test
	$(MAKE) wheel

# The pictures of README and docs, of the demo's archive.
pictures: servers
	$(RUN)/python tools/pictures.py

# For the test of examples/javascript (Node.js).
javascript:
	npm ci --ignore-scripts --no-audit --no-fund --prefix examples/javascript

torture: $(READY)
	OMP_NUM_THREADS=1 timeout 1200 $(RUN)/pytest -m torture tests

# What starts processes, threads or servers, again and again: make repeat TIMES=100 WHAT=tests/index/test_trust.py
TIMES ?= 10
WHAT ?= tests
repeat: $(READY)
	for round in $$(seq $(TIMES)); do \
		echo "round $$round of $(TIMES)"; \
		OMP_NUM_THREADS=1 $(RUN)/pytest -m 'starts and not torture' --maxfail 1 $(WHAT) || exit 1; \
	done

# Wheel and sdist of the last commit, in dist/: built twice, from a clean clone, to the same bytes; then the wheel is
# installed alone, and used once.
wheel: $(READY)
	rm -rf build/clone dist && git clone --quiet . build/clone
	export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) PIP_CONSTRAINT=$(CURDIR)/constraints.txt; cd build/clone; \
	for dist in ../../dist ../again; do rm -rf $$dist && ../../$(RUN)/python -m build --outdir $$dist . > /dev/null || exit 1; done
	diff -r dist build/again
	rm -rf build/bare && $(PYTHON) -m venv build/bare
	build/bare/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && bare/bin/crovca --version && bare/bin/crovca datasets > bare/datasets.txt

# The oldest versions that pyproject.toml allows, as far as they install on this Python: of the core, and of the extras
# in two more (with transformers 4 they did not go together).
LOWEST := core files frameworks
core_TOOLS := pillow
core_TESTS := test_codes.py index hashing evaluation
files_EXTRAS := report images augment heic onnx serve duplicates pg sqlite lancedb chdb qdrant
files_TOOLS := httpx onnxruntime
files_TESTS := hasher encoders archive service servers_contract/test_files.py servers_contract/test_qdrant.py
frameworks_EXTRAS := sentence-transformers langchain llama-index ray milvus augment
frameworks_TOOLS := langchain-tests httpx uvicorn fastapi
frameworks_TESTS := integrations embedding
empty :=
comma := ,

lowest: $(LOWEST:%=lowest-%)

lowest-%: $(READY)
	rm -rf build/lowest-$* && $(PYTHON) -m venv build/lowest-$*
	$(RUN)/python tools/lowest.py $($*_EXTRAS) > build/lowest-$*.txt
	build/lowest-$*/bin/python -m pip install --quiet --constraint build/lowest-$*.txt pytest hypothesis $($*_TOOLS) \
		--editable '.$(if $($*_EXTRAS),[$(subst $(empty) $(empty),$(comma),$($*_EXTRAS))])'
	cd build && OMP_NUM_THREADS=2 lowest-$*/bin/python -m pytest $($*_TESTS:%=../tests/%) --ignore=../tests/service/test_openapi.py -m 'not slow and not servers and not torture' -c ../pyproject.toml --rootdir .. -W default

# DATA: embeddings (.npz) to make real codes of; without it codes are random.
bench: servers
	$(RUN)/python benchmarks/training.py
	$(RUN)/python benchmarks/evaluation.py
	$(RUN)/python benchmarks/memory.py
	mkdir -p build
	$(RUN)/python benchmarks/search.py $(if $(DATA),--data $(DATA)) --servers --out build/search
	$(RUN)/python benchmarks/scale.py $(if $(DATA),--data $(DATA)) --out build/scale
	$(RUN)/python benchmarks/scale.py $(if $(DATA),--data $(DATA)) --faiss 1000000 --out build/scale
	$(RUN)/python benchmarks/scale.py $(if $(DATA),--data $(DATA)) --small --out build/scale
	$(RUN)/python benchmarks/clusters.py --json build/clusters.json
