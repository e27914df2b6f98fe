# make demo     compile, verify and replay a transfer, and show what happened
# make test     linters, type checks, import contracts and all tests
# make lint     all of that but the tests
# make format   rewrite the code as the linters want it
# make venv     only prepare the virtual environment
# make clean    remove caches and build outputs; make distclean: the environment too
#
# Needed beforehand: git, make, and Python 3.11 or newer with its venv module. The first run installs
# into a virtual environment inside the repository; later runs reuse it until pyproject.toml or
# constraints.txt changes.
#
# Variables, as `make test NAME=value` or from the environment:
#   PYTHON       interpreter for the environment (default: the newest suitable one found)
#   VENV         where the environment lies (default: .venv)
#   PIP_ARGS     more arguments for pip install, such as an index that has torch without CUDA
#   PYTEST_ARGS  more arguments for pytest, such as PYTEST_ARGS="-m gpu -n 0"

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
HAS_VENV := import ensurepip, venv

# Candidates are run, not just looked up: a shim may stand for an interpreter that is not installed.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	if $$name -c '$(HAS_VENV); $(NEW_ENOUGH)' >/dev/null 2>&1; then echo $$name; break; fi; done)
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Frameworks whose own code the tests run.
FRAMEWORKS := $(addprefix $(VENV)/.,megatron sglang vllm)

# Silences a notice about newer versions, which asks the network on every run.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help demo test lint format venv clean distclean

help:
	@sed -n -e '/^$$/q' -e 's/^# \{0,1\}//p' Makefile

demo: $(READY)
	$(BIN)/tranship demo

test: lint $(FRAMEWORKS)
	$(BIN)/pytest -n 2 $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(READY)

# $(READY) is removed first and made last, so an environment without it was left half way: it is
# cleared. One that has it, but is older than its inputs, is brought up to date in place.
$(READY): pyproject.toml constraints.txt
	@set -e; \
	problem=; python='$(PYTHON)'; python=$${python:-python3}; \
	if ! $$python -c '' 2>/dev/null; then \
		problem="$$python does not run"; \
	elif ! $$python -c '$(NEW_ENOUGH)'; then \
		problem="$$python is $$($$python --version 2>&1)"; \
	elif ! $$python -c '$(HAS_VENV)' 2>/dev/null; then \
		problem="$$python lacks its venv module (on Debian and Ubuntu: apt install python3-venv)"; \
	fi; \
	if [ -n "$$problem" ]; then \
		echo "tranship needs Python 3.11 or newer with venv, but $$problem." >&2; \
		echo "Name another interpreter: make PYTHON=/path/to/python ..." >&2; \
		exit 1; \
	fi; \
	clear=--clear; if [ -e $@ ]; then clear=; fi; \
	rm -f $@; \
	echo "Preparing $(VENV) with $$($$python --version). The first time takes minutes: torch is large."; \
	$$python -m venv $$clear $(VENV); \
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) \
		-c constraints.txt -e '.[runtime,dev]'; \
	touch $@

# Frameworks as far as their models load without a GPU: --no-deps, since each wants a torch of its
# own and many packages of CUDA kernels. Tests skip themselves where theirs is missing.
$(FRAMEWORKS): $(VENV)/.%: tests/%/requirements.txt $(READY)
	@echo "Adding what the tests against real models of $* need."; \
	if $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --no-deps \
		-r $<; then touch $@; \
	else echo "$* cannot be installed here: its tests are skipped."; fi

clean:
	rm -rf build dist *.egg-info .coverage .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
