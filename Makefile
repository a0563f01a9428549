.PHONY: help test-unit lint
PYTHON := .venv/bin/python

test-unit: ## Fast tests: no engine, no Ray
	$(PYTHON) -m pytest tests/unit -q

lint:
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy
