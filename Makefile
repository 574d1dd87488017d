PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin
# Tests run on one thread each, so as many run at once as there are cores.
PYTEST := -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all test-lowest lint format docs clean

demo: .venv/.installed-demo  ## fetch real data, train both stages, caption images, answer questions, write the report
	$(BIN)/python -m experiments.first_light.run

test: .venv/.installed-dev  ## what a change must pass
	$(BIN)/python $(PYTEST)

test-all: .venv/.installed-dev  ## the slow tests too
	$(BIN)/python -m pytest -m "not gpu"

test-lowest: .venv-lowest/.installed  ## the tests with the lowest versions that pyproject.toml declares
	$(LOWEST)/python $(PYTEST)

lint: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyrefly check

format: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/.installed-docs  ## the site of the documents, in build/site
	rm -rf build/pages && mkdir -p build/pages
	git ls-files README.md docs experiments arlow_vl/models/arlow | grep -E '\.(md|svg|png|yaml|py|ipynb)$$' | tar cT - | tar x -C build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet -f docs/site/mkdocs.yml

# `demo` installs what the demo needs, `dev` that and what tests and lint need.
.venv/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[$*]'
	touch $@

# Made anew each time: uv leaves what is installed and newer.
.venv-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --resolution lowest-direct -e '.[dev]'
	touch $@

clean:
	rm -rf runs .pytest_cache .ruff_cache .hypothesis build *.egg-info
