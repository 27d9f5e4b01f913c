# Everything the project can do, by name. CI calls only these targets, so what passes here passes there.
#   make demo | test        for users: set-up included, they use the built wheel (build/venv)
#   make dev                for work: .venv, editable install
#   make lint | types | ci | ci-full | fuzz | simulate | soak | bench | bench-NAME

PYTHON  ?= python3
VENV    := .venv
USER    := build/venv
LOG     := build/log
SOURCES := $(shell find native wire edge broker hardware -type f -not -name '*.so' -not -name '*.pyc' -not -name '*.md') setup.py pyproject.toml MANIFEST.in
ARGS    ?=

.PHONY: help dev lint types test demo bench fuzz simulate soak ci ci-full clean
help:
	@sed -n '2,4p' Makefile

# --- the environment for work --------------------------------------------------------------------------------------
$(VENV)/.made: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip setuptools wheel build ruff mypy cffi
	$(VENV)/bin/python -m pip install --quiet --no-build-isolation --editable '.[compile,demo,test]'
	@touch $@
dev: $(VENV)/.made
	@$(VENV)/bin/python setup.py --quiet build_ext --inplace
	@echo "ready: . $(VENV)/bin/activate"

# --- the environment for users: the wheel, as it would be installed ------------------------------------------------
$(USER)/.made: $(SOURCES)
	@mkdir -p build/dist
	@test -x $(USER)/bin/python || $(PYTHON) -m venv $(USER)
	@$(USER)/bin/python -m pip install --quiet --upgrade pip build
	@rm -f build/dist/*
	@echo "building the wheel"
	@$(USER)/bin/python -m build --outdir build/dist . > build/dist.log 2>&1 || { cat build/dist.log; exit 1; }
	@echo "installing it into $(USER) (a minute, the first time)"
	@$(USER)/bin/python -m pip install --quiet "$$(ls build/dist/*.whl)[compile,demo,test]"
	@$(USER)/bin/python -m pip install --quiet --force-reinstall --no-deps build/dist/*.whl
	@touch $@

demo: $(USER)/.made
	$(USER)/bin/fleetgrad demo $(ARGS)
test: $(USER)/.made
	$(USER)/bin/python tests/suites.py --sample $(ARGS)

# --- checks ----------------------------------------------------------------------------------------------------------
lint: $(VENV)/.made
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
types: dev
	@mkdir -p build/types/fleetgrad
	@for room in native wire edge broker hardware; do ln -sfn ../../../$$room build/types/fleetgrad/$$room; done
	$(VENV)/bin/mypy
ci: lint types test
ci-full: lint types $(USER)/.made
	$(USER)/bin/python tests/suites.py --full $(ARGS)

# --- fuzzing, MINUTES for each target; ARGS=blocks chooses one -------------------------------------------------------
MINUTES ?= 5
fuzz: dev
	$(VENV)/bin/python -m tests.fuzz.harness --minutes $(MINUTES) $(ARGS)

# --- long runs: many seeds of the simulation, hours of real processes under faults ------------------------------------
SEEDS ?= 20000
HOURS ?= 24
simulate: dev
	$(VENV)/bin/python -m tests.simulation.many --seeds $(SEEDS) $(ARGS)
soak: dev
	$(VENV)/bin/python -m tests.chaos.soak --hours $(HOURS) $(ARGS)

# --- figures ---------------------------------------------------------------------------------------------------------
bench: $(USER)/.made
	$(USER)/bin/python tests/bench.py $(ARGS)
bench-%: $(USER)/.made
	$(USER)/bin/python tests/bench.py $* $(ARGS)

clean:
	rm -rf build dist *.egg-info native/*.so native/_core.c
