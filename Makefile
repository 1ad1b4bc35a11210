# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stamp carries a digest of what decides the environment, so an unchanged second run installs nothing.
DIGEST := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.installed-$(DIGEST)

.PHONY: install demo test test-browser test-notebooks test-slow lint clean

install: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else f"vmae needs Python 3.11 or newer, got {v}: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23" "setuptools>=77"
	@# torch first and alone: a later requirement must find it installed, not pull another build
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@rm -f $(VENV)/.installed-*
	@touch $@

# The paper's two ratios, side by side on two cores.
demo: install
	$(BIN)/vmae sweep masking_ratio --values 0.75,0.9 --equal time

# Two processes, one thread each: on two cores that is faster than one process with two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: install
	$(PYTEST) -m "not slow and not browser"

# The dashboard in a headless Chromium; skipped with the reason where there is none. One process: the pages
# of one server.
test-browser: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "browser and not slow"

# Every cell of docs/notebooks, as a reader runs them: a minute or two.
test-notebooks: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_notebooks.py

# What takes long (faults with real processes, whole recompiles): before a release, not in CI.
# One process: Ray takes a node for dead that two cores are too busy to answer for.
test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p vmae

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
