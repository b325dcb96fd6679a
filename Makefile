# Everything runs in .venv, which is created on first use: `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev
PARALLEL := -n auto --dist worksteal
CIFAR100 ?= $(CHECKPOINTKD_TEST_DATA)/cifar100

# Install the extras of this package. pip's messages are shown, but for those that a user cannot act on: its own version,
# and places of packages in pip's configuration that do not exist.
define install
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[$(EXTRAS)]' 2> .venv/pip.log; status=$$?; \
		grep -v 'Location .* is ignored' .venv/pip.log >&2; exit $$status
endef

.PHONY: demo test test-slow test-all test-faults check docs bench format clean

demo: .venv/installed
	$(BIN)/checkpointkd demo --out runs/demo

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow and not faults" $(PARALLEL)

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow $(PARALLEL)

test-all: test test-slow

# Damaged and hostile inputs, killed processes and full disks, with every command. `make test` runs some of these tests.
test-faults: .venv/installed
	$(BIN)/python -m pytest tests/faults tests/checkpoints/test_safety.py tests/checkpoints/test_inert_pickle.py \
		tests/test_machines.py tests/test_storage.py $(PARALLEL)

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

# The documentation site, in build/site. It opens without a server: build/site/index.html.
docs: .venv/installed
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site

bench: EXTRAS := dev,bench
bench: .venv/installed
	$(install)
	$(BIN)/python benchmarks/speed.py --cifar100 $(CIFAR100)
	$(BIN)/python benchmarks/scoring.py --cifar100 $(CIFAR100)

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(install)
	@touch $@
