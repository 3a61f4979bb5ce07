# make demo: install into .venv, train on the digits that come with foveal, evaluate, predict.
# make test: lint, types, and every test but the slow ones, a file at a time on each processor (OpenMP's threads
# must not spin then: they would take the time of the other tests).
#
# PYTHON=python3.12 chooses another Python; TORCH='torch==2.11.0 --index-url ADDRESS' another build of torch.

PYTHON ?= python3
VENV ?= .venv
TORCH ?=

FOVEAL := $(VENV)/bin/foveal
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
CONSTRAINTS := $(VENV)/constraints.txt

.PHONY: demo test slow-test format clean

demo: $(VENV)/installed
	$(FOVEAL) train digits
	$(FOVEAL) evaluate runs/digits
	$(FOVEAL) predict runs/digits examples/seven.png
	@echo "Next: $(FOVEAL) recipes, $(FOVEAL) train --help, and README.md"

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest -m "not slow" -n auto --dist loadfile --no-loadscope-reorder

slow-test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -m slow --timeout 3600

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:
	rm -rf $(VENV) runs

# A torch chosen by hand is installed first, and the constraint on it dropped.
$(CONSTRAINTS): constraints.txt
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),)
	cp constraints.txt $@
else
	$(PIP) $(TORCH)
	grep -v '^torch==' constraints.txt > $@
endif

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PIP) --constraint $(CONSTRAINTS) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@
