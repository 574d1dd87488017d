PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Tests run on one thread each, so as many run at once as there are cores.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all lint format clean

demo: $(INSTALLED)  ## fetch real data, train both stages, caption images, answer questions, write the report
	$(BIN)/python -m experiments.first_light.run

test: $(INSTALLED)
	$(PYTEST)

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "not gpu"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyrefly check

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	touch $@

clean:
	rm -rf runs .pytest_cache .ruff_cache .hypothesis build *.egg-info
