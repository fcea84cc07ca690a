# Every target makes the environment it needs in .venv, from pyproject.toml and constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

RUNS ?= 2000

.PHONY: demo test test-arm test-oldest fuzz bench peers lint clean

demo: .venv/.demo
	$(BIN)/isostep race

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# On aarch64, under QEMU's emulation where this is another machine: see tests/arm.py.
test-arm: .venv/.dev
	$(BIN)/python -m tests.arm $(ARGUMENTS)

# With the oldest versions that pyproject.toml declares, each lane in an environment of its own; by
# default all of them, which brings several gigabytes (torch with CUDA, TensorFlow, Paddle).
test-oldest: .venv/bin/python
	$(BIN)/python -m tests.oldest $(LANES)

# Random edits between steps: RUNS of each stateful test, other ones each time.
fuzz: .venv/.dev
	ISOSTEP_FUZZ=$(RUNS) $(BIN)/python -m pytest -n 2 --dist loadfile -m fuzz

bench: .venv/.dev
	$(BIN)/python -m benchmarks

# PEERS is a folder with checkouts of the frameworks (see docs/peers.md); ARGUMENTS go to peers.
peers: .venv/.peers
	$(BIN)/python -m peers $(if $(PEERS),--checkouts "$(PEERS)") $(ARGUMENTS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[cli]'
	touch $@

# Linting needs the frameworks too: the types of their front-ends are checked against them.
.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[dev,frameworks]'
	touch $@

# timm goes to a folder of its own, without what it asks for: that would bring another torch.
.venv/.peers: .venv/.dev
	$(PIP) --no-deps --upgrade --target .venv/peers timm torchvision
	touch $@

clean:
	rm -rf .venv .arm .oldest .peers race race.png race.html
