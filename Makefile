# Everything runs in .venv, which is made on first use: `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
AT_ONCE := -n auto --dist worksteal
CIFAR100 ?= $(CHECKPOINTKD_TEST_DATA)/cifar100

.PHONY: demo test test-all check bench format clean

demo: .venv/installed
	$(BIN)/checkpointkd demo --out runs/demo

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow" $(AT_ONCE)

test-all: .venv/installed
	$(BIN)/python -m pytest $(AT_ONCE)

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python benchmarks/speed.py --cifar100 $(CIFAR100)
	$(BIN)/python benchmarks/scoring.py --cifar100 $(CIFAR100)

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
