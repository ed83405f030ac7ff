# Every target sets itself up in .venv, from a bare Python of at least 3.11, and does nothing twice.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ANY_PYTHON = $(or $(wildcard $(BIN)/python),$(PYTHON))
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help search test test-system test-faults test-gpu gpu-report lint ui lock clean

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

search: .venv/installed  ## Search VAE, flow and f-VAE on the digits; draw the map. ARGS="--dataset PATH" for your images.
	@$(BIN)/python tune/search.py $(ARGS)

test: .venv/installed-dev lint  ## Lint, check types, run every test that needs nothing but Python.
	@$(PYTEST) -m core $(ARGS)

test-system: .venv/installed-dev  ## The tests that need system programs, and root.
	@$(BIN)/python -m tests.system_programs
	@$(PYTEST) -m system $(ARGS)

test-faults: .venv/installed-dev  ## The tests that kill processes, machines and stores, at every moment.
	@$(PYTEST) -m faults $(ARGS)

test-gpu:  ## The tests that need a CUDA GPU, and of Python torch, numpy, safetensors, pyarrow and pytest alone.
	@$(ANY_PYTHON) -m pytest -m gpu tests/gpu $(ARGS)

gpu-report:  ## Measure the product on a GPU, in eight minutes; it needs what test-gpu does. ARGS="--mnist DIR".
	@$(ANY_PYTHON) -m benchmarks.gpu_report $(ARGS)

lint: .venv/installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy
	@$(BIN)/deptry . && $(BIN)/deptry . --extend-exclude '(tests|benchmarks|docs)/' --optional-dependencies-dev-groups dev

ui: .venv/installed  ## Open MLflow's pages on http://127.0.0.1:5000 (PORT=… for another).
	@$(BIN)/python -m pipelines.ui --port $(or $(PORT),5000) $(ARGS)

lock: .venv/installed-dev  ## Resolve pyproject.toml anew into the lock files.
	@set -e; for lock in requirements requirements-dev; do \
		extras="--extra search --extra cluster"; test $$lock = requirements || extras="$$extras --extra dev"; \
		$(BIN)/pip-compile --quiet --upgrade --strip-extras --no-annotate --no-header --no-emit-index-url \
			--no-emit-find-links --no-emit-trusted-host $$extras --output-file $$lock.lock pyproject.toml; \
		sed -i.bak -E 's/^(torch==[0-9.]+)\+.*/\1/' $$lock.lock; rm $$lock.lock.bak; \
	done

clean:  ## Remove .venv; runs/ stays.
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.11 …" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 2; }

.venv/installed: .venv/bin/python requirements.lock pyproject.toml
	@echo "Installing into .venv (once, a few minutes) …"
	@$(INSTALL) --requirement requirements.lock
	@echo "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/fvae.pth"
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock benchmarks/search/requirements.txt
	@$(INSTALL) --requirement requirements-dev.lock
	@$(INSTALL) --no-deps --requirement benchmarks/search/requirements.txt
	@touch $@
