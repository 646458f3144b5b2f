# `make` lists the targets. Each works in a fresh clone and needs Python >= 3.11 and a package registry, nothing else.

PYTHON ?= python3
# Pinned, so that sums are taken in the same order on every machine; a process a core, and each with one thread.
TEST_THREADS ?= 1
TEST_PROCESSES ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# The constraints decide: left to the plain range, pip would fetch a torch with gigabytes of CUDA libraries.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo check test docs lock clean

help:
	@echo "make demo    train a detector on synthetic scenes, in minutes on two CPU cores"
	@echo "make check   formatting, lint, types, import directions"
	@echo "make test    check, then every test"
	@echo "make docs    the documentation as a site, from disk without a network: docs/_build/index.html"
	@echo "make lock    write requirements.lock anew: versions and SHA-256 of all runtime dependencies"
	@echo "make clean   remove caches, build output and .demo/; runs/ and $(VENV)/ stay"
	@echo "PYTHON=python3.12 chooses the interpreter, PYTEST_ARGS='-k loss' the tests."

demo: $(VENV)/.installed
	$(BIN)/anchorite demo

check: $(VENV)/.installed-dev
	@echo "== ruff format"
	@$(BIN)/ruff format --check .
	@echo "== ruff check"
	@$(BIN)/ruff check .
	@echo "== mypy"
	@$(BIN)/mypy --num-workers $(TEST_PROCESSES)
	@echo "== lint-imports"
	@$(BIN)/lint-imports

# Files in their order: by number of tests, as xdist has it otherwise, those of few and long tests come last.
test: check $(VENV)/.browser
	@echo "== pytest"
	@OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -q --durations=15 -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Strict: a reference or link that leads nowhere is an error. Fresh, because what was left over would hide one.
docs: $(VENV)/.installed-dev
	rm -rf docs/_build
	$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build
	@echo "docs/_build/index.html"

lock: $(BIN)/pip
	$(BIN)/python tools/lock_requirements.py

# Pages are tested in Chromium, and that is a package of the system's, not of Python's.
$(VENV)/.browser: | $(BIN)/pip
	@command -v chromium >/dev/null || { \
	  echo "== installing chromium, which the tests of pages need"; \
	  as=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$as apt-get update -qq && $$as env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	  { echo "chromium could not be installed; install it yourself, or leave its tests out: make test PYTEST_ARGS='-m \"not browser\"'"; exit 2; }
	@touch $@

clean:
	rm -rf .demo build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv puts there: where it is missing, an earlier attempt was cut short.
$(BIN)/pip:
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) was not found; name a Python >= 3.11: make PYTHON=python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1); anchorite needs Python >= 3.11: make PYTHON=python3.11"; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.installed
