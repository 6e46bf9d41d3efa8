# Everything runs in .venv, which the first target that needs it makes from requirements/dev.txt.
# It takes Python 3.10 or newer, make and a package index; uv only makes it faster.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := worker operator tests benchmarks examples

.DEFAULT_GOAL := help
.PHONY: help run test test-chaos test-cluster test-gpu demo-cluster test-matrix check conformance conformance-emulated conformance-all format exports crd install-manifest bench lock clean

help:
	@echo "make run          the main job: a parameter server and elastic trainers on this machine, with a kill"
	@echo "make test         the whole test suite"
	@echo "make test-chaos   random joins, leaves, drains and kills; an etcd outage"
	@echo "make test-cluster a real Kubernetes from source (needs Go; built once, about 10 minutes), and its tests"
	@echo "make test-gpu     on a machine with a GPU: tests/gpu and PyTorch's own CUDA tests (docs/gpu.md)"
	@echo "make demo-cluster the digits job as real pods on it, with a kill (needs root)"
	@echo "make test-matrix  a smoke selection on the oldest and the newest Python and torch"
	@echo "make conformance  PyTorch's own RPC suite on this package, by class; conformance-all: three times in a row;"
	@echo "                  conformance-emulated: its tests for CUDA alone, on emulated devices (docs/gpu.md)"
	@echo "make check        format, lint, types, layers, public names"
	@echo "make bench        beside torch RPC and a bare socket, in one run"
	@echo "make format       format the code;  make exports  accept changed public names"
	@echo "make crd          write manifests/crd.yaml and docs/fields.md anew from the model"
	@echo "make install-manifest  write manifests/install.yaml anew from the chart (needs what test-cluster builds)"
	@echo "make lock         resolve requirements/dev.txt anew;  make clean  remove .venv and caches"

run: $(READY)
	@$(BIN)/python -m examples.digits.demo

test: $(READY)
	@$(BIN)/python -m pytest tests --ignore tests/chaos --ignore tests/cluster --ignore tests/conformance \
		--ignore tests/gpu -n 2 --dist loadfile

test-chaos: $(READY)
	@RPCGROUP_CHAOS_RUNS=$${RPCGROUP_CHAOS_RUNS:-100} $(BIN)/python -m pytest tests/chaos

test-cluster: $(READY)
	@$(BIN)/python -m tests.cluster.bed build
	@$(BIN)/python -m pytest tests/cluster -o faulthandler_timeout=3600

test-gpu: $(READY)
	@$(BIN)/python -m pytest tests/gpu

demo-cluster: $(READY)
	@$(BIN)/python -m tests.cluster.digits

conformance: $(READY)
	@$(BIN)/python -m tests.conformance $(ARGS)
	@$(if $(ARGS),,$(MAKE) --no-print-directory conformance-emulated)
	@$(BIN)/python -m pytest tests/conformance

conformance-emulated: $(READY)
	@$(BIN)/python -m tests.conformance --emulated --timeout 180 --results /tmp/rpcgroup-conformance-emulated $(ARGS)

conformance-all: $(READY)
	@for run in 1 2 3; do $(BIN)/python -m tests.conformance $(ARGS) || exit 1; done

test-matrix: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" requirements/matrix.sh

check: $(READY)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest tests/test_exports.py tests/test_layers.py tests/test_mirror.py tests/operator/test_crd.py \
		tests/operator/test_field_reference.py tests/test_docs.py

format: $(READY)
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix --select I $(SOURCES)

exports: $(READY)
	@$(BIN)/python tests/test_exports.py

crd: $(READY)
	@$(BIN)/python -m rpcgroup_operator.crd > manifests/crd.yaml
	@cp manifests/crd.yaml charts/rpcgroup/files/crd.yaml
	@$(BIN)/python -m rpcgroup_operator.field_reference > docs/fields.md

install-manifest: $(READY)
	@$(BIN)/python -m tests.cluster.install_manifest > manifests/install.yaml.new
	@mv manifests/install.yaml.new manifests/install.yaml

bench: $(READY)
	@$(BIN)/python -m benchmarks $(ARGS)

# --no-emit-*: the file names packages and hashes, never where they came from.
lock: $(READY)
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -q -o requirements/dev.txt
	@echo "requirements/dev.txt resolved; 'make test' installs it"

clean:
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache worker/*.egg-info
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements/dev.txt pyproject.toml requirements/install.sh
	@PYTHON="$(PYTHON)" requirements/install.sh $(VENV) requirements/dev.txt
	@touch $@
