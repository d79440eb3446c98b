# `make demo` and `make test` do all their set-up themselves; each package set is installed once. Test files are shared
# out to one process more than there are cores, for some tests wait, and those with much to do come first; a file's tests
# stay together, with what they solve once. `make test-thorough` adds what `make test` leaves out: further cases of
# randomised tests and long lists.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-thorough lint docs wheel-check clean

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.core
	$(BIN)/theodolite demo --out runs/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-thorough: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --thorough $(PYTEST_ARGS)

# Tests and benchmarks import the package by its name: a link shows the type checker where it is.
lint: $(VENV)/.dev
	mkdir -p build/typed
	ln -sfn ../.. build/typed/theodolite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --threads 2

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

# All pages and a reference of every module, into build/site; a link that leads nowhere ends it.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q --strict

# The wheel, unpacked away from the checkout, must annotate a clip by a packaged recipe.
wheel-check: $(VENV)/.dev
	rm -rf build
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w build/wheel .
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target build/site build/wheel/*.whl
	cd build && PYTHONPATH=$(CURDIR)/build/site $(CURDIR)/$(BIN)/python $(CURDIR)/tests/wheel_check.py

clean:
	rm -rf $(VENV) build *.egg-info
