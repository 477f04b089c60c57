# Every target makes its own .venv first. Needed on the machine: Python 3.11 or newer, and make.
#   make demo PYTHON=python3.12                    another interpreter
#   make demo PIP_FLAGS='--extra-index-url URL'    more for pip, such as an index with CPU builds of torch
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.eguot-installed

.PHONY: demo test test-slow test-arm64 fuzz board check format clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# The SDK's tests on that board. Slow: it is emulated.
test-arm64: $(STAMP)
	$(BIN)/python tests/board/run_suite.py .board

# Both fuzz targets, so many seconds each; what is found lands in tests/fuzz/findings, where `make test` tries it again.
FUZZ_SECONDS ?= 30
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/run.py raw --seconds $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz/run.py ispfile --seconds $(FUZZ_SECONDS)

# An emulated arm64 board for the tests that want one; Debian's debootstrap, proot and qemu-user-static.
board: $(STAMP)
	$(BIN)/python tests/board/make_board.py .board

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist demo-out .mypy_cache .pytest_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $$($(PYTHON) --version 2>&1) was found: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[train,convert,coreml,onnx,cluster,devices,dev]'
	touch $@
