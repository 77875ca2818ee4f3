# Two commands on a fresh machine with Python >= 3.11: `make quickstart` and `make test`. Each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test test-all lint docs

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt --compile-bytecode -e '.[all,dev,docs]'
	touch $@

quickstart: install
	$(BIN)/mam2 quickstart

test: lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p mam2
	$(BIN)/mypy benchmarks

test-all: test
	$(BIN)/python -m pytest -m slow

docs: install
	$(BIN)/mkdocs build --strict --quiet --site-dir site
