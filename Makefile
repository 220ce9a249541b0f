# Everything runs from .venv, which is made once and again only when what it is made from changes.
SHELL := bash
BIN := .venv/bin
READY := .venv/.ready
# Written last, and removed before anything is changed. A .venv without it was interrupted, and pip takes a half-unpacked
# package for a whole one: it is made anew, from what pip has kept of its downloads.
WHOLE := test -e $(READY) && $(BIN)/python -c '' 2>/dev/null

# The versions that constraints.txt has wheels for; PYTHON=... names another interpreter.
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
FOUND = $(shell for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
	"$$python" -c '$(USABLE)' >/dev/null 2>&1 && echo "$$python" && break; done)
ifneq ($(filter-out clean,$(or $(MAKECMDGOALS),demo)),)
ifeq ($(or $(shell $(WHOLE) && echo whole),$(FOUND)),)
$(error no Python 3.11 to 3.14 with venv and ensurepip among: $(or $(PYTHON),$(PYTHONS)); \
	install one (on Debian also its -venv package) or name it with PYTHON=...)
endif
endif

.PHONY: demo unit test test-all fuzz check format clean remake
demo: $(READY)
	$(BIN)/python jobs/demo.py

# Tests that need neither Ray nor all cores run side by side; the others one after the other.
BESIDE := -n auto --maxprocesses 8
unit: check
	$(BIN)/python -m pytest $(BESIDE) -m "not ray and not long and not heavy and not slow"

test: check
	$(BIN)/python -m pytest $(BESIDE) -m "not ray and not heavy and not slow"
	$(BIN)/python -m pytest -m "(ray or heavy) and not slow"

test-all: check
	$(BIN)/python -m pytest $(BESIDE) -m "not ray and not heavy and not slow"
	$(BIN)/python -m pytest -m "ray or heavy or slow"

# Malformed inputs of every kind (tests/fuzz): make fuzz N=10000 SEED=1 takes about five minutes.
N := 1000
SEED := 0
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --inputs $(N) --seed $(SEED)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pip says hundreds of lines: shown are its large files, when it unpacks (a minute or two), and what goes wrong.
SHOWN := ^(Downloading|Using cached) .* [MG]B\)|^Processing .*\.whl|^Installing collected packages|.*(ERROR|rror:).*
$(READY): pyproject.toml constraints.txt $(if $(shell $(WHOLE) && echo whole),,remake)
	@if $(WHOLE); then echo "bringing .venv up to date"; else \
	    echo "installing into .venv with $(FOUND): about 6.5 GB, 3 to 7 minutes"; \
	    rm -rf .venv; "$(FOUND)" -m venv .venv; fi
	@rm -f $@
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt \
	    -e '.[dev,export,hf,pretrained,timm]' 2>&1 | { grep --line-buffered -oE '$(SHOWN)' || true; }
	@touch $@

clean:
	rm -f $(READY)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
