# make quickstart   install into .venv and run the quickstart study
# make test         install into .venv and run the tests
# make lint         style, types and the arrows between the rooms
# make dist         build sdist and wheel, check them, install the wheel by itself and run a small study with it
# make chaos        kill the processes of small studies, and certify that nothing is lost: ten minutes
# make schema       write studies/study.schema.json anew

VENV := .venv
BIN := $(VENV)/bin

# The first Python that is new enough and not newer than what is tested; `make PYTHON=...` to choose.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo $$python; break; }; done)

.PHONY: quickstart test lint dist chaos schema clean

quickstart: $(VENV)/.installed
	$(BIN)/gatelab run studies/quickstart.yaml

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

dist: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	.ci/wheel $(BIN)/python dist/*.whl

chaos: $(VENV)/.installed
	$(BIN)/python benchmarks/chaos.py

schema: $(VENV)/.installed
	$(BIN)/python -m gatelab.ablations.schema > studies/study.schema.json

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "gatelab needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,datasets,evaluation]'
	touch $@

clean:
	rm -rf $(VENV)
