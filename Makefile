# Every target works as the first command ever typed: what it needs is made first.
PYTHON ?= python3
OUT    ?= runs/latest
VENV   := .venv
BIN    := $(VENV)/bin
INSTALLED := $(VENV)/installed
UV     := $(BIN)/uv pip install --python $(BIN)/python --constraints $(VENV)/constraints.txt --editable
SPREAD := --numprocesses logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help course lab test test-fast test-all films slides exercises site lint bench notebooks clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# What learners need, in the versions of uv.lock; without a GPU, CPU wheels from PyTorch's own index.
$(INSTALLED): pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install uv
	@$(BIN)/uv export --quiet --frozen --all-extras --no-hashes --no-emit-project --output-file $(VENV)/constraints.txt
	@$(UV) . --torch-backend=auto || { \
	  echo "PyTorch's index did not answer: torch comes from PyPI, which on Linux means CUDA and 3 GB."; \
	  $(UV) .; }
	@touch $@

# What one of the extras of pyproject.toml adds: .venv/installed-test, .venv/installed-docs
$(INSTALLED)-%: $(INSTALLED)
	$(UV) '.[$*]'
	@touch $@

course: $(INSTALLED)  ## run all lessons on the embedded tissue (class preset) into runs/latest
	$(BIN)/crc-course run --preset class --out $(OUT)

# Freed memory is kept for the next training step, as in the kernels that crc-course starts.
lab: export MALLOC_TRIM_THRESHOLD_ = 2147483647
lab: export MALLOC_MMAP_THRESHOLD_ = 1073741824
lab: $(INSTALLED)  ## open the lessons in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. --ServerApp.tornado_settings='{"websocket_max_message_size": 104857600}'

test: $(INSTALLED)-test  ## run the tests that every change must pass
	$(BIN)/python -m pytest $(SPREAD)

test-fast: $(INSTALLED)-test  ## run the tests that need no training and no notebook
	$(BIN)/python -m pytest -m 'not slow and not nightly' $(SPREAD)

test-all: $(INSTALLED)-test  ## run every test, also the nightly ones, and fuzz for longer
	CRC_FULL=1 $(BIN)/python -m pytest -m '' $(SPREAD)

films: $(INSTALLED)-test  ## film two explorers for the README; needs Chromium
	$(BIN)/python tools/film.py

slides: $(INSTALLED)-test  ## make a deck of slides for each lesson in build/slides
	$(BIN)/python tools/decks.py

lint: $(INSTALLED)-test  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check crc_helpers studies tools tests benchmarks

bench: $(INSTALLED)-test  ## measure speed against peers; writes benchmarks/SPEED.md (twenty minutes, 20 GB of disk)
	for name in views_speed grad_cam_speed pretraining_speed many_tiles explorers_speed; do \
	  $(BIN)/python benchmarks/$$name.py || exit; done

notebooks: $(INSTALLED)  ## refresh the committed outputs, figures and weights (class preset)
	$(BIN)/crc-course run --preset class --out runs/published
	$(BIN)/python tools/publish.py --out runs/published

exercises: $(INSTALLED)-test  ## write the students' exercises and the solutions from exercises/source
	$(BIN)/python tools/exercises.py

site: $(INSTALLED)-docs  ## build the web site into build/site
	$(BIN)/sphinx-build -W --keep-going -c docs -d build/doctrees . build/site
	cp build/site/README.html build/site/index.html

clean:  ## remove the environment, the site and all runs
	rm -rf $(VENV) build runs
