# Two commands on a fresh machine with Python >= 3.11: `make quickstart` and `make test`. Each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test test-all mutants lint docs

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt --compile-bytecode -e '.[all,dev,docs]'
	touch $@

quickstart: install
	$(BIN)/mam2 quickstart

test: lint
	$(BIN)/python -m pytest -n logical --maxprocesses 8

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p mam2
	$(BIN)/mypy benchmarks

test-all: test
	$(BIN)/python -m pytest -m slow

# Changes one operator, number or argument of losses, masks, model and training at a time, about 3,200 times, and lists
# what the tests do not notice: 30 minutes on one core (docs/log/tests.md).
mutants: install
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results
	$(BIN)/python tests/report_mutants.py

docs: install
	$(BIN)/mkdocs build --strict --quiet --site-dir site
