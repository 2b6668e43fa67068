# Each target does its own set-up, once. Needs Python 3.10 or newer with venv, make, and a package index.
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check
UV ?= uv==0.13.9
# the demo's model, text and place; any name on the Hugging Face hub will do for the first two
MODEL ?=
DATA ?=
OUT ?= runs/demo

# the lowest versions that pyproject.toml allows of what this stands on and changes most
OLDEST = $(shell sed -nE 's/^ *"(nnsight|transformers|datasets)>=([0-9.]+).*/\1==\2/p' pyproject.toml)

.PHONY: demo docs test test-full test-latest test-oldest lint format bench lock clean

demo: $(VENV)/.installed
	$(BIN)/python demo/demo.py --save-dir $(OUT) $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA))

# the pages of docs/ with a search and a reference, for a browser: build/site/index.html
docs:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(PIP) -r site/requirements.txt
	.venv-docs/bin/mkdocs build --quiet --strict
	@echo build/site/index.html

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# what is heavy, too, and every case of each grid (tests/conftest.py)
test-full: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadgroup --full

# not what the lock says, but what pip would take today, and what it might have taken at first
test-latest:
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python $(PIP) "$(TORCH)"
	.venv-latest/bin/python $(PIP) --upgrade --upgrade-strategy eager "$(TORCH)" -e ".[dev,gguf]"
	.venv-latest/bin/python -m pytest -n 2 --dist loadgroup

test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP) "$(TORCH)"
	.venv-oldest/bin/python $(PIP) $(OLDEST) -e ".[dev,gguf]"
	.venv-oldest/bin/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright -p pyright_strict.json

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py

# torch comes first: pinned, it is the same everywhere, and nothing after it asks for another. The lock has all the rest,
# what builds this package too, which is why that is done here and not in an environment of its own
$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c requirements.lock "$(TORCH)"
	$(BIN)/python $(PIP) -c requirements.lock editables hatchling
	$(BIN)/python $(PIP) -c requirements.lock --no-build-isolation -e ".[dev,gguf]"
	touch $@

# the newest of everything that goes with this torch, for every Python and platform; what only torch's CUDA builds bring is
# torch's to say
lock:
	$(PYTHON) -m venv .cache/lock
	.cache/lock/bin/python $(PIP) "$(UV)"
	echo "$(TORCH)" > .cache/lock/torch.txt
	.cache/lock/bin/uv pip compile --quiet --universal --python-version 3.10 --upgrade --extra dev --extra gguf \
		--constraint .cache/lock/torch.txt --no-annotate --no-header pyproject.toml --output-file .cache/lock/all.txt
	{ echo "# Everything that make installs but torch, which the Makefile names: constraints for pip, made by make lock."; \
		grep -vE '^(torch|cuda-|nvidia-)' .cache/lock/all.txt; } > requirements.lock

clean:
	rm -rf $(VENV) .venv-latest .venv-oldest .cache .pytest_cache .ruff_cache
