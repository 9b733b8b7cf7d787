# Everything a newcomer runs. `make` alone prints the list.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
WORKERS ?= 2
CODE    := srflow_nb tests tools benchmarks
CHECKS  := style library docs notebooks tests

# Waiting threads sleep instead of spinning: two processes share two cores without slowing each other down.
export OMP_WAIT_POLICY ?= passive
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lab docs readme export browser clean $(addprefix check-,$(CHECKS))

help:           ## print this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-9s %s\n", $$1, $$2}'

demo: $(STAMP)  ## run the whole chain in minutes and write demo/report.html
	@$(BIN)/srflow demo --out demo --preset quick
	@echo "demo: done. Open demo/report.html"

test: $(STAMP)  ## check everything that CI checks
	@for check in $(CHECKS); do $(MAKE) --no-print-directory check-$$check || exit 1; done
	@echo "make test: everything passed"

lab: $(STAMP)   ## open the course in JupyterLab
	@$(BIN)/jupyter lab nbs

docs: $(STAMP)  ## build the documentation (HTML where Quarto is installed)
	@$(BIN)/python tools/build_docs.py --workers $(WORKERS)

readme: $(STAMP) ## write README.md from nbs/index.ipynb
	@$(BIN)/python tools/build_readme.py

export: $(STAMP) ## write the library from the notebooks, and clean them
	@$(BIN)/nbdev-export && $(BIN)/nbdev-clean && echo "export: srflow_nb/ written from nbs/"

setup: $(STAMP) ## make .venv with everything that the other targets need
	@echo "setup: .venv is ready"

browser:        ## install Chromium (Debian, Ubuntu) for the tests that look at rendered pages
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { apt-get update -qq && apt-get install -y -qq chromium; }

clean:          ## remove what was built: .venv, demo, documentation, caches
	@rm -rf $(VENV) demo _docs _proc nbs/nbdev.yml nbs/assets build dist *.egg-info .pytest_cache .ruff_cache .cache
	@find srflow_nb tests tools benchmarks nbs \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
	@echo "clean: done"

# The stamp is written last, so an interrupted installation starts again.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: '$(PYTHON)' not found; install Python 3.10 or newer, or name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $$($(PYTHON) --version) is too old, 3.10 or newer is needed; name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) comes without venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "setup: installing into $(VENV) (about two minutes)"
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

check-style: $(STAMP)
	@echo "== style"
	@$(BIN)/ruff check $(CODE)

check-library: $(STAMP)
	@echo "== the library is what the notebooks export"
	@$(BIN)/python tools/check_library.py

check-docs: $(STAMP)
	@echo "== the documentation's own processing"
	@$(BIN)/python tools/build_docs.py --process-only --workers $(WORKERS)

# Two notebooks at a time, one thread each.
check-notebooks: $(STAMP)
	@echo "== every notebook runs"
	@OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers $(WORKERS) --timing
	@echo "notebooks: every cell ran and every check held"

check-tests: $(STAMP)
	@echo "== tests"
	@$(BIN)/python -m pytest -q
