# Everything runs from .venv, which is made once and again only when what it is made from changes.
BIN := .venv/bin
READY := .venv/.ready
BEFORE := .venv/.before
# Written last. A .venv without it was interrupted, and pip takes a half-unpacked package for a whole one: it is made
# anew, from what pip has kept of its downloads.
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

.PHONY: demo test test-all check format clean remake
demo: $(READY)
	$(BIN)/python jobs/demo.py

test: check
	$(BIN)/python -m pytest

test-all: check
	$(BIN)/python -m pytest -m ""

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pip says hundreds of lines; of these, what is large, what goes wrong, and how far unpacking has come. An update that
# fails is taken back by pip, unless it was killed.
$(READY): pyproject.toml constraints.txt $(if $(shell $(WHOLE) && echo whole),,remake)
	@if $(WHOLE); then echo "bringing .venv up to date"; mv $@ $(BEFORE); \
	else echo "installing into .venv with $(FOUND): about 6.5 GB, 3 to 6 minutes"; \
	    rm -rf .venv; "$(FOUND)" -m venv .venv; fi
	@{ $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt \
	    -e '.[dev,export,pretrained]' 2>&1; echo "exit $$?"; } | { while read -r line; do case "$$line" in \
	    "exit "*) test -z "$$beat" || kill $$beat; exit $${line#exit };; \
	    "Installing collected packages"*) echo "unpacking"; \
	        while sleep 15 >/dev/null 2>&1; kill -0 $$$$ 2>/dev/null; do du -sh .venv; done & beat=$$!;; \
	    Downloading*.metadata*|Using\ cached*.metadata*|*" kB)"|*" bytes)") ;; \
	    Looking*|Obtaining*|Collecting*|Requirement*|*etadata*|*"build dependencies"*|*"to build"*) ;; \
	    Processing*|Created*|Building*|Stored*|Checking*|Successfully*|*"is ignored: it is neither"*) ;; \
	    *) echo "$$line";; esac; done; exit 1; } \
	    || { status=$$?; test $$status -gt 128 || test ! -e $(BEFORE) || mv $(BEFORE) $@; exit $$status; }
	@rm -f $(BEFORE); touch $@

clean:
	rm -f $(READY)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
