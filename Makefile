# Every target makes the environment it needs, once. A fresh machine needs only make and Python with venv.

BIN := .venv/bin
STAMPED := pyproject.toml requirements.txt
# Python compiles what is imported when it is; pip would compile all of it first.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
PYTEST_ARGS ?= -n 2 --dist loadfile
ALONE = $(shell grep -rl --include='*.py' mark.alone tests)

# Without it TensorFlow opens every run with notes on the processor and on the lack of a GPU.
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Without it mkdocs-material opens every build with its view of a future MkDocs, which pyproject.toml does not admit.
export NO_MKDOCS_2_WARNING ?= 1

# One line that succeeds in a Python we can use: the right version, and able to make an environment.
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
OLD_BIN := .venv-oldest/bin

# A package index shows the README without the files beside it, so pictures and links have to say where they are.
REVISION ?= main
ABSOLUTE = -e 's,(!\[[^]]*\]\()([^):]+\)),\1$(SOURCE_URL)/raw/$(REVISION)/\2,g' \
	-e 's,\]\(([^):]+\)),]($(SOURCE_URL)/blob/$(REVISION)/\1,g'

.DEFAULT_GOAL := help
.PHONY: demo test test-all test-slow test-nightly test-oldest keras-suite lint format wheel bench bench-check docs docs-serve notebooks clean help

demo: .venv/.demo  ## show the main job on real data
	$(BIN)/gradrecipes demo

test: .venv/.dev  ## run the first tier of the tests; PYTEST_ARGS="-k trace" for some of them
	$(BIN)/python -m pytest -q --durations=10 -m "not slow and not nightly and not alone" $(PYTEST_ARGS)

test-slow: .venv/.dev  ## run the second tier: documentation, recipe scripts, processes, several replicas
	$(BIN)/python -m pytest -q --durations=20 --no-loadscope-reorder -m "slow and not nightly and not alone" $(PYTEST_ARGS)
	$(BIN)/python -m pytest -q -m "alone and not nightly" $(ALONE)

test-all: test test-slow  ## run both tiers, as .ci/run does

test-nightly: .venv/.dev  ## run the tests that train for minutes
	$(BIN)/python -m pytest -q --durations=20 -m nightly $(PYTEST_ARGS)

test-oldest: .venv-oldest/.dev  ## run the tests on the oldest releases that pyproject.toml admits
	$(OLD_BIN)/python -m pytest -q --durations=10 -m "not slow and not nightly and not alone" $(PYTEST_ARGS)
	$(OLD_BIN)/python -m pytest -q -m "alone and not slow and not nightly" $(ALONE)

keras-suite: .venv/.dev  ## run Keras' own tests, plain and with our callbacks in every fit, and compare (15 minutes)
	$(BIN)/python tests/keras_suite/run.py $(SUITE_ARGS)

lint: .venv/.dev  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev  ## mend style and format where a machine can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: .venv/.dev  ## build the packages into dist/ and check them; SOURCE_URL=https://github.com/OWNER/gradrecipes for an index
	rm -rf dist build/source
	$(BIN)/python -m build --sdist --outdir build/source .
	tar -xzf build/source/*.tar.gz -C build/source
	if [ -n "$(SOURCE_URL)" ]; then sed -E -i.relative $(ABSOLUTE) build/source/gradrecipes-*/README.md; fi
	rm -f build/source/gradrecipes-*/README.md.relative
	$(BIN)/python -m build --outdir dist build/source/gradrecipes-*/
	$(BIN)/twine check --strict dist/*

notebooks: .venv/.dev  ## run the recipe scripts as notebooks and write down what they measured (10 minutes); RECIPES=05_architecture
	$(BIN)/python benchmarks/measure_recipes.py $(RECIPES)

bench: .venv/.dev  ## run the benchmarks and write their figures into benchmarks/results/; ONLY="overhead chain" for some
	$(BIN)/python -m benchmarks.run $(ONLY)

bench-check: .venv/.dev  ## measure the shorter benchmarks again; fails where a figure is worse than the recorded one
	$(BIN)/python -m benchmarks.run --check $(ONLY)

docs: .venv/.docs  ## build the documentation into site/; a link that leads nowhere fails it
	$(BIN)/mkdocs build --strict

docs-serve: .venv/.docs  ## show the documentation at http://127.0.0.1:8000 and follow changes
	$(BIN)/mkdocs serve

clean:  ## remove what was built; .venv and .venv-oldest stay
	rm -rf build dist out site .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

# -- the environment ---------------------------------------------------------------------------
.venv/.demo: $(STAMPED) | $(BIN)/pip
	@echo "Installing gradrecipes with what the demo needs (some minutes the first time) ..."
	@$(PIP) --editable '.[demo]'
	@touch $@

.venv/.docs: $(STAMPED) | $(BIN)/pip
	@echo "Installing gradrecipes with what its documentation needs (some minutes the first time) ..."
	@$(PIP) --editable '.[docs]'
	@touch $@

.venv/.dev: $(STAMPED) | $(BIN)/pip
	@echo "Installing gradrecipes with what its development needs (some minutes the first time) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@ .venv/.demo .venv/.docs

# TensorFlow 2.18 was not built for Python 3.13.
.venv-oldest/.dev: $(STAMPED) tests/oldest_versions.py
	@echo "Installing gradrecipes with the oldest releases it admits (some minutes the first time) ..."
	@for candidate in $(or $(PYTHON),python3.11 python3.12); do \
		if "$$candidate" -c '$(USABLE)' >/dev/null 2>&1; then exec "$$candidate" -m venv --clear .venv-oldest; fi; \
	done; echo "No Python 3.11 or 3.12 among: $(or $(PYTHON),python3.11 python3.12)." >&2; exit 1
	@$(OLD_BIN)/python tests/oldest_versions.py > .venv-oldest/constraints.txt
	@$(OLD_BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-oldest/constraints.txt --editable '.[dev]'
	@touch $@

# ensurepip writes pip last, so an environment that broke off half-way is made again.
$(BIN)/pip:
	@for candidate in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
		if "$$candidate" -c '$(USABLE)' >/dev/null 2>&1; then \
			echo "Making .venv with $$candidate"; exec "$$candidate" -m venv .venv; \
		fi; \
	done; \
	echo "No usable Python found among: $(or $(PYTHON),python3.13 python3.12 python3.11 python3)." >&2; \
	echo "gradrecipes needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian: python3-venv)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1
