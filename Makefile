# Everything runs in .venv, which `make setup` builds; `make test` and `make quickstart` call it themselves.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart quickstart-agent test-unit test test-sglang test-all lint fuzz bench lock clean
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# verl resolves its platform when it is imported, so only the environment can choose it.
CPU := VERL_PLATFORM=cpu

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Build .venv with the stack that needs no GPU (PYTHON=python3.11 chooses the Python)
# An old Python cannot even read the script, which finds the one for .venv by itself.
	@for python in python3 $(if $(PYTHON),'$(PYTHON)') python3.11 python3.12; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null || continue; \
		exec "$$python" .ci/setup.py $(if $(PYTHON),--python '$(PYTHON)'); \
	done; \
	echo "setup: no python3 of 3.8 or later is on PATH; install Python 3.11 or 3.12, or name it with" \
		"make setup PYTHON=/path/to/python3.11" >&2; exit 1

quickstart: setup ## A small real model learns to call tools on this machine, without a GPU (ARGS=--fast: a short form)
	$(BIN)/verl-toolrl quickstart $(ARGS)

quickstart-agent: setup ## The same over several turns with tools (ARGS="--seed 2")
	$(BIN)/verl-toolrl quickstart-agent $(ARGS)

test-unit: setup ## Fast tests: no engine, no Ray (under 2 minutes)
	$(PYTEST) -q -n auto tests/unit

test: setup ## Fast tests, then those with real verl, Ray and vLLM (10 to 31 minutes, by the processor)
	$(PYTEST) -q -n auto tests/unit
	$(CPU) $(PYTEST) -q -n auto --dist loadfile --no-loadscope-reorder --durations=25 tests/integration

test-all: test ## All of `make test`, then the learning runs and slow checks (under 75 minutes)
	$(CPU) $(PYTEST) -q tests/slow

test-sglang: setup ## A real SGLang under verl, without a GPU, in .venv-sglang
	@$(BIN)/python .ci/setup_sglang.py
	$(CPU) .venv-sglang/bin/python -m pytest -q tests/sglang

lint: setup ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

fuzz: setup ## A million mutated responses: no exception, finite, inside the bounds
	@for script in tests/fuzz_*.py; do echo "== $$script"; $(BIN)/python $$script --count 1000000 || exit 1; done

bench: setup ## Print the speed tables of tests/benchmarks
	@for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(CPU) $(BIN)/python $$script || exit 1; done

lock: ## Renew requirements-cpu.txt
	$(BIN)/python .ci/lock.py

clean: ## Remove caches and build products; .venv and outputs/ stay
	rm -rf build dist ./*.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
