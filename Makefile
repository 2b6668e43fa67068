# Each target does its own set-up, once. Needs Python 3.10 or newer with venv, make, and a package index.
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# the demo's model, text and place; any name on the Hugging Face hub will do for the first two
MODEL ?=
DATA ?=
OUT ?= runs/demo

.PHONY: demo test lint format bench clean

demo: $(VENV)/.installed
	$(BIN)/python demo/demo.py --save-dir $(OUT) $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA))

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py

# torch comes first: pinned, it is the same everywhere, and nothing after it asks for another
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,gguf]"
	touch $@

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
