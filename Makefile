# Every target works from a bare checkout: it makes the environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The three methods and what they are usually held against; `run` without names has the whole main table.
ROWS := co2l ssil csd naive replay er_ace derpp icarl scr_repaired lwf joint

# The tests that docs/compatibility.md is written from.
MATRICES := $(addprefix tests/plugins/test_,stream_matrix.py partners.py buffers.py)

.PHONY: install benchmark notebooks docs compatibility test test-slow lowest lint types clean

install: $(READY)

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[dev]"
	touch $@

benchmark: $(READY)
	$(BIN)/python -m benchmarks run $(ROWS) --out out/split_digits

# Two processes; the tests of a file stay together, for they share what is slow to make.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# The lowest versions that setup.cfg declares, in an environment of their own; downloads some gigabytes.
lowest:
	$(PYTHON) tests/lowest.py

compatibility: $(READY)
	$(BIN)/python -m pytest -m "" --write-compatibility $(MATRICES)

notebooks: $(READY)
	$(BIN)/python notebooks/build.py --check

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs out/docs
	@echo "open out/docs/index.html"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
