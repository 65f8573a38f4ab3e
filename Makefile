# Every target works as the first command ever typed: what it needs is made first.
PYTHON ?= python3
OUT    ?= runs/latest
VENV   := .venv
BIN    := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help course lab test test-fast test-browser test-faults fuzz films lint bench notebooks clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

course: $(INSTALLED)  ## run all lessons on the embedded tissue (class preset) into runs/latest
	$(BIN)/crc-course run --preset class --out $(OUT)

lab: $(INSTALLED)  ## open the lessons in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. --ServerApp.tornado_settings='{"websocket_max_message_size": 104857600}'

test: $(INSTALLED)  ## run every test, the notebooks among them
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup

test-fast: $(INSTALLED)  ## run the tests that need no training and no notebook
	$(BIN)/python -m pytest -m 'not slow'

test-faults: $(INSTALLED)  ## kills, bad input, long use: the full count, half an hour (make test has a sample)
	CRC_FAULTS=1 $(BIN)/python -m pytest -rP tests/faults

fuzz: $(INSTALLED)  ## ten minutes of damaged images and tables
	$(BIN)/python -W ignore tests/faults/fuzz.py --minutes 10

test-browser: $(INSTALLED)  ## operate every explorer in JupyterLab; skipped without Chromium
	$(BIN)/python -m pytest tests/test_browser.py

films: $(INSTALLED)  ## film two explorers for the README; needs Chromium
	$(BIN)/python tools/film.py

lint: $(INSTALLED)  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check crc_helpers tests benchmarks/*_speed.py benchmarks/harness.py

bench: $(INSTALLED)  ## measure speed against peers; writes benchmarks/SPEED.md (twenty minutes, 20 GB of disk)
	for name in views_speed grad_cam_speed pretraining_speed many_tiles explorers_speed; do \
	  $(BIN)/python benchmarks/$$name.py || exit; done

notebooks: $(INSTALLED)  ## refresh the committed outputs, figures and weights (class preset)
	$(BIN)/crc-course run --preset class --out runs/published
	$(BIN)/python tools/publish.py --out runs/published

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs
