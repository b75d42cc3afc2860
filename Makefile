# One word per chore, the same for people and CI.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# torch comes first and alone: DeepSpeed looks for it while it is being built.
TORCH := $(shell grep -i '^torch==' constraints.txt)

SERVE ?= 1
TUNE ?= 0
ARGS ?=

.PHONY: install demo check test test-drills test-campaigns clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet $(TORCH) -c constraints.txt
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --no-build-isolation -e '.[dev]' -c constraints.txt
	touch $(STAMP)

demo: install
	$(BIN)/llmrec demo --recipe movielens-100k --json $(if $(filter 0,$(SERVE)),--no-serve) $(if $(filter 1,$(TUNE)),--tune) $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install
	$(BIN)/pytest -m 'not drill and not campaign' $(ARGS)

test-drills: install
	$(BIN)/pytest -m drill $(ARGS)

test-campaigns: install
	$(BIN)/pytest -m campaign $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
