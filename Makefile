# make demo   sets up .venv-demo; the trained model is released for two chips, proved, asked and published into a folder
# make test   sets up .venv, then format, lint, types and all tests that are not marked slow
# make test-gpu   the tests that need a CUDA device; without one it fails
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test test-slow test-gpu lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[engine,eval,dev]' -c constraints.txt
	@touch $@

# The demo needs a third of what the tests need: torch, and neither triton nor lm-eval. It takes the tests' environment if
# that is there.
DEMO       := .venv-demo
DEMO_STAMP := $(DEMO)/.installed
$(DEMO_STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."'
	@echo "setting up $(DEMO): 1.1 GB, mostly torch; a few minutes the first time"
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --disable-pip-version-check --no-compile -e '.[demo]' -c constraints.txt
	@touch $@

demo: $(if $(wildcard $(STAMP)),,$(DEMO_STAMP))
	@$(if $(wildcard $(STAMP)),$(BIN),$(DEMO)/bin)/python examples/demo.py

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -n auto

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal --durations=25 -m 'not slow and not gpu'

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m 'slow and not gpu'

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

bench: $(STAMP)
	$(BIN)/python benchmarks/convert.py

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
