# The book and its checks. Each target prepares .venv by itself.

PYTHON ?= python3
NOTEBOOKS ?=
GRID ?=
BIN := .venv/bin
GPU_TESTS := tests/kernels/test_decode.py tests/kernels/test_gpu.py
INDEX := _build/html/index.html
SOURCES := _config.yml _toc.yml CHANGELOG.md requirements-book.txt \
	$(shell find book mla_edu -type f ! -path '*/__pycache__/*' ! -path '*/.*' 2>/dev/null)

# One thread per process: the tests run in parallel. Kernels come from .venv before those of the user.
export OMP_NUM_THREADS ?= 1
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONUTF8 := 1

python_state = $(shell $(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	print("is Python %d.%d" % v if not (3, 11) <= v <= (3, 13) \
	else "ok" if __import__("importlib.util").util.find_spec("ensurepip") \
	else "has no venv module (on Debian or Ubuntu: apt install python3-venv)")' 2>/dev/null || echo "does not run")
need_python = $(if $(filter ok,$(python_state)),,$(error \
	Python 3.11 to 3.13 with venv is needed, but $(PYTHON) $(python_state). Name another with "make PYTHON=..."))

.PHONY: help book test test-gpu bench-gpu serve notebooks lint links clean venv-book venv-full need-gpu

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

book: $(INDEX) ## Build the book into _build/html
	@echo "The book is at $(CURDIR)/$(INDEX)"
	@echo "Open it in a browser: file://$(CURDIR)/$(INDEX)"

test: lint book ## Run every check: style, package, notebooks, rendered pages
	@echo "Running the tests ..."
	@$(BIN)/python -m pytest -n 2 --dist loadscope --nbval --nbval-current-env

test-gpu: need-gpu ## Run the kernel tests on this machine's GPU
	@TRITON_INTERPRET=0 $(BIN)/python -m pytest $(GPU_TESTS) tests/bench/test_clock.py

bench-gpu: need-gpu ## Test and time the kernel on this machine's GPU; a part only: GRID="heads=16 dtype=fp8"
	@start=$$(date +%s) && TRITON_INTERPRET=0 $(BIN)/python -m pytest -q tests/bench/test_clock.py && \
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 $(GPU_TESTS) && \
	TRITON_INTERPRET=0 $(BIN)/python benchmarks/decode_kernel.py \
		--seconds $$((start + 540 - $$(date +%s))) $(GRID)

serve: $(INDEX) ## Build the book and serve it on 127.0.0.1
	@$(BIN)/python tools/serve.py

notebooks: venv-full ## Execute the chapters in place; some only: NOTEBOOKS="01-... 02-..."
	@$(BIN)/python tools/execute_notebooks.py $(NOTEBOOKS)

lint: venv-full ## Check the style with ruff
	@echo "Checking the style ..."
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet

links: venv-book ## Check the links that lead out of the book (needs the network)
	@$(BIN)/jupyter-book build . --builder linkcheck -q

clean: ## Remove the built book and .venv
	rm -rf _build .venv

# A build that failed or is stale starts from nothing, so that no warning hides behind a page built earlier.
$(INDEX): $(SOURCES) | venv-book
	@echo "Building the book ..."
	@rm -rf _build
	@$(BIN)/jupyter-book build . -n -W --keep-going -q >/dev/null || { rm -rf _build; exit 1; }
	@touch $(INDEX)

venv-book:
	@$(need_python)$(PYTHON) tools/prepare_venv.py book

venv-full: venv-book
	@$(PYTHON) tools/prepare_venv.py full

need-gpu: venv-full
	@$(BIN)/python -c 'import torch; torch.cuda.is_available() or exit("no GPU; expected one that torch can use")'
