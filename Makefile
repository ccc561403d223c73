# Everything a developer does, as `make TARGET`. On a fresh Debian 12 or Ubuntu 24.04, as root, each target brings what it
# needs; what is there already is not done again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
# Lab tests wait for daemons more than they compute, so there are more workers than cores.
WORKERS ?= 4
# A test that fails is run once more, and both are told (docs/decisions/0024); 0 while you look for what fails now and then.
RERUNS ?= 1
PYTEST := $(PYTHON) -m pytest
SOURCES := routed tests package setup.py
EVERYTHING := '.[test,lint,package]'

.PHONY: help setup check format test test-fast explore demo lab lab-down bench man wheel deb clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Into .venv, which is made where it is missing: $(1) is what pip is told to install.
define install
	@[ -x $(PYTHON) ] || python3 -m venv $(VENV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'routed needs Python 3.11 or newer'; exit 1; }
	@echo 'installing routed into $(VENV)'
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -e $(1)
endef

$(VENV)/.packages: .ci/packages
	@.ci/packages
	@mkdir -p $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.packages
	$(call install,$(EVERYTHING))
	@touch $(VENV)/.demo $@

$(VENV)/.demo: pyproject.toml .ci/packages
	@.ci/packages demo
	$(call install,.)
	@touch $@

setup: $(VENV)/.installed ## install the system packages and .venv that the rest needs

check: setup ## style, formatting, types, and which room may import which
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: setup ## let ruff format and fix what it can
	$(VENV)/bin/ruff check --fix $(SOURCES)
	$(VENV)/bin/ruff format $(SOURCES)

test: setup ## the whole test suite, real kernels and real peers included (root)
	$(PYTEST) -n $(WORKERS) --dist loadscope --reruns $(RERUNS)

test-fast: setup ## the tests that need neither root nor other daemons
	$(PYTEST) -n $(WORKERS) --dist worksteal -m 'not lab'

explore: setup ## the properties once more, with examples nobody has tried yet
	HYPOTHESIS_PROFILE=explore $(PYTEST) -n $(WORKERS) $$(grep -rl --include='test_*.py' hypothesis tests)

demo: $(VENV)/.demo ## three nodes, a top-of-rack switch and pods in network namespaces (root)
	@$(PYTHON) -m routed.testing.demo

# Where a topology's name is taken by a laboratory that is up, NAME=OTHER brings up another one of it.
lab: setup ## bring up containerlab/TOPO in network namespaces and leave it: make lab TOPO=mesh-3 (root)
	@[ -n "$(TOPO)" ] || { echo 'which one? make lab TOPO=NAME, with NAME one of:'; ls -d containerlab/*/ | xargs -n1 basename; exit 1; }
	@$(PYTHON) -m routed.testing.lab up containerlab/$(TOPO) --as '$(or $(NAME),$(TOPO))'

lab-down: setup ## end the laboratory TOPO; all that are up without TOPO (root)
	@$(PYTHON) -m routed.testing.lab down $(TOPO)

bench: setup ## the speed of this machine's routed, as docs/benchmarks has it (root)
	$(PYTHON) -m tests.bench

man: setup ## the man pages, in build/man
	@$(PYTHON) -m package.man build/man

wheel: setup ## the wheel, in dist
	@$(PYTHON) -m package.wheel dist

deb: setup ## the Debian package for this distribution and its Python, in dist
	@$(PYTHON) -m package.deb dist

clean: ## remove .venv and everything that is generated
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
