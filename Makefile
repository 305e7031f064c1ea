# Everything a user or a developer runs. The only needs are make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTABLE := $(VENV)/.testable
# Processes that run the tests, whose files are shared out among them. Two of them leave a quarter of two cores idle; each
# more collects all tests and has an engine of its own. In the order of their names: those with the fewest tests, which
# come last otherwise, take the longest.
JOBS ?= 3

# The tests start thousands of processes: without compiled modules each compiles all that it imports, two seconds of it.
export PYTHONDONTWRITEBYTECODE :=

# uv takes a third of the time; pip, where uv fails, knows the indexes of pip's own configuration.
OWN := .[server,demo,dev]
ALL := .[server,demo,dev,agents]
pip = $(BIN)/python -m pip install --quiet --disable-pip-version-check
install = $(pip) uv && $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --editable '$(1)' || $(pip) --editable '$(1)'

.DEFAULT_GOAL := help
.PHONY: help demo stop up down test environments check bench prove clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Meterhouse needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	@echo "Setting up $(VENV) (about 1.3 GB with the embedded engine; takes a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(call install,$(OWN))
	@touch $(READY)

$(TESTABLE): $(READY)
	@echo "Adding the SDKs and frameworks whose metering is tested (about 0.6 GB) ..."
	@$(call install,$(ALL))
	@touch $(TESTABLE)

demo: $(READY) ## run the whole way, from three agents to Stripe invoices, and prove it
	@$(BIN)/python examples/demo.py $(ARGS)

stop: $(READY) ## stop what `make demo` left running, in ./demo-data
	@$(BIN)/meterhouse down --data demo-data

up: $(READY) ## start Meterhouse for your own agents (to leave it running: make up ARGS=--detach)
	@$(BIN)/meterhouse up $(ARGS)

down: $(READY) ## stop what `make up ARGS=--detach` left running, in ./meterhouse-data
	@$(BIN)/meterhouse down $(ARGS)

test: $(TESTABLE) ## run the test suite
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

environments: $(READY) ## meter libraries that need environments of their own, and the oldest (one: ONLY=crewai)
	@$(BIN)/python tests/environments/run.py $(ONLY)

check: $(READY) ## lint, format, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(TESTABLE) ## measure (one group: make bench ONLY=collector)
	@$(BIN)/python bench/run.py bench $(if $(ONLY),--only $(ONLY))

prove: $(TESTABLE) ## run the long proofs (one group: make prove ONLY=collector)
	@$(BIN)/python bench/run.py prove $(if $(ONLY),--only $(ONLY))

clean: ## remove what was built (the virtual environment included)
	rm -rf $(VENV) .venvs build dist demo-data .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
