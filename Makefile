# make test | make demo: each sets itself up on a fresh machine, and does nothing twice. `make help` lists the rest.

PYTHON ?= python3.11
WORKERS ?= 2
UV_VERSION := 0.13.9

VENV := .venv
BIN := $(VENV)/bin
AIRFLOW := .airflow
# A stamp's name holds the digest of what it installed, so that a changed lock installs again and nothing else does.
digest = $(shell cat $(1) | sha256sum | cut -c1-12)
INSTALLED := $(VENV)/installed-$(call digest,requirements/cpu.txt requirements/cuda.txt pyproject.toml)
AIRFLOW_INSTALLED := $(AIRFLOW)/venv/installed-$(call digest,requirements/airflow.txt)

# One thread a worker: more of them only fight over the cores. Spark workers must run this environment's Python.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install prerequisites lint test demo airflow-test lock clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

install: $(INSTALLED) ## set up .venv from the lock (the other targets do this themselves)

prerequisites:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: apt-get install python3.11 python3.11-venv, or make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module: apt-get install python3.11-venv"; exit 1; }
	@java=$${JAVA_HOME:+$$JAVA_HOME/bin/}java; \
	major=$$("$$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p'); \
	[ "$${major:-0}" -ge 17 ] || echo "note: no Java 17 or newer, so the local engine serves in Spark's place and Spark's tests skip: apt-get install openjdk-17-jre-headless"

# Torch goes first, with its dependencies, so that pip takes a CPU build where one is offered; what it then finds
# decides which lock the rest comes from. Both locks agree on what torch itself needs.
$(INSTALLED): | prerequisites
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint requirements/cuda.txt torch
	lock=$$($(BIN)/python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")') && \
	$(BIN)/pip install --no-deps --requirement requirements/$$lock.txt
	$(BIN)/pip install --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/installed-* && touch $@

lint: $(INSTALLED) ## ruff's rules (docstrings included) and format, mypy strict on every package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## lint, then every test; COVERAGE=yes measures the lines they run and fails under the floor in pyproject.toml
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup $(if $(COVERAGE),--cov --cov-report=term:skip-covered)

demo: $(INSTALLED) ## a synthetic marketplace from exposure log to an evaluated ranker: runs/demo/report.html
	$(BIN)/genrank demo --out runs/demo

$(AIRFLOW_INSTALLED): | prerequisites
	$(PYTHON) -m venv $(AIRFLOW)/venv
	$(AIRFLOW)/venv/bin/pip install --no-deps --requirement requirements/airflow.txt
	@rm -f $(AIRFLOW)/venv/installed-* && touch $@

airflow-test: $(INSTALLED) $(AIRFLOW_INSTALLED) ## one day of the daily DAG, end to end, in an Airflow of its own
	tests/airflow_dags/run_day.sh

.uv/bin/uv: | prerequisites
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet uv==$(UV_VERSION)

lock: .uv/bin/uv ## resolve pyproject.toml into requirements/*.txt again (UPGRADE=yes: newest releases)
	PATH=$(CURDIR)/.uv/bin:$$PATH requirements/lock.sh

clean: ## remove what runs and tests leave behind
	rm -rf build dist .coverage *.egg-info spark-warehouse metastore_db derby.log artifacts .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove the environments as well
	rm -rf $(VENV) $(AIRFLOW) .uv
