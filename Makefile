# Everything starts here: `make help` lists the commands, tools/setup.sh says what PYTHON, VENV and ADPE_CACHE do.
SHELL := bash
VENV ?= .venv
export PYTHON VENV
ifeq ($(VENV),none)
  python := $(or $(PYTHON),python3)
else
  python := $(VENV)/bin/python
endif
# The tree that make runs in comes first, also where an environment is shared by several clones.
run := PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(python)

# What builds the site has an environment of its own: it reads the docstrings without importing what they import.
DOCS_VENV ?= .venv-docs
# What needs neither torch nor OpenMMLab is tested under a second interpreter, too.
PURE_PYTHON ?= python3.12
PURE_VENV ?= .venv-pure
pure_tests := tests/leaderboard/test_leaderboard.py tests/leaderboard/test_overview.py tests/leaderboard/test_published.py \
	tests/leaderboard/test_statistics.py tests/configs/test_option_values.py tests/suites/test_schema.py tests/docs/test_links.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-pure lint docs doctor clean

help:
	@echo 'make demo [DATA_ROOT=FOLDER] [ARGS=...]  pretrain, transfer to segmentation and detection, show a leaderboard'
	@echo 'make test [ARGS=...]                     run the tests; ARGS goes to pytest, e.g. ARGS="-k adversary"'
	@echo 'make test-pure                           those that need no torch, under PURE_PYTHON=python3.12'
	@echo 'make lint                                ruff and mypy'
	@echo 'make docs                                the documentation site, in build/site'
	@echo 'make doctor                              what is installed, and whether it works together'
	@echo 'make setup                               only make the environment, which the others do too'
	@echo 'make clean                               remove the environments and the tools'\'' caches; results and built ops stay'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter (3.10 - 3.12), VENV=FOLDER the environment (.venv);'
	@echo 'VENV=none uses the packages of PYTHON and installs nothing.'

setup:
	@tools/setup.sh

demo: setup
	$(run) tools/demo.py $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)") $(ARGS)

# A process more than cores, since tests of killed and stopped runs wait; four do for what the slowest tests take.
test: setup
	$(run) -m pytest -n $$(($$(nproc) + 1)) --maxprocesses 4 --maxschedchunk 1 $(ARGS)

test-pure: $(PURE_VENV)/.complete
	PYTHONPATH="$(CURDIR)" $(PURE_VENV)/bin/python -m pytest -q --noconftest -p no:cacheprovider -m "not slow" $(pure_tests)

$(PURE_VENV)/.complete: requirements/runtime.txt requirements/tests.txt
	$(PURE_PYTHON) -m venv $(PURE_VENV)
	$(PURE_VENV)/bin/python -m pip install --quiet -c requirements/runtime.txt -c requirements/tests.txt \
		numpy pillow rich scipy PyYAML Jinja2 pytest hypothesis
	@touch $@

lint: setup
	$(run) -m ruff check .
	$(run) -m mypy

# Not --quiet, with which mkdocs counts no warnings.
docs: $(DOCS_VENV)/.complete
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict
	@echo 'The site is in build/site/index.html'

$(DOCS_VENV)/.complete: requirements/docs.txt
	$(or $(PYTHON),python3) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --no-deps -r requirements/docs.txt
	@touch $@

# Without setup: it also says what is wrong with an environment that cannot be made.
doctor:
	@if [ "$(VENV)" != none ] && [ ! -x "$(python)" ]; then echo "There is no environment in $(VENV): run \`make setup\`."; exit 1; fi
	@$(run) tools/doctor.py $(ARGS)

clean:
	@if [ -d "$(VENV)/.adpe" ]; then rm -rf "$(VENV)"; fi
	@for folder in "$(DOCS_VENV)" "$(PURE_VENV)"; do if [ -f "$$folder/.complete" ]; then rm -rf "$$folder"; fi; done
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find adpe benchmarks configs tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
