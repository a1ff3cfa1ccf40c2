# `make lab` opens the book, `make test` proves it. Everything else is for daily work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHAPTER := book/part1_foundations/01_five_answers_from_one_image.ipynb
ROOT_FLAG := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)

# Two notebooks run side by side in the tests; one thread each keeps their outputs steady.
test check unit notebooks book: export OMP_NUM_THREADS = 1
test check unit notebooks book: export PYTHONHASHSEED = 0
# (no MPLBACKEND here: with agg a notebook shows no figures)

.PHONY: help lab test check lint unit notebooks book book-check pdf chapters train clean

help:
	@echo "make lab [ARGS=--no-browser]   open the book in JupyterLab"
	@echo "make test                      lint, types, unit tests, notebooks, the built book"
	@echo "make check                     lint, types and fast unit tests (under two minutes)"
	@echo "make book                      build the HTML book into _build/html"
	@echo "make pdf                       print that book into _build/pdf/mlore-edu.pdf (needs Chromium)"
	@echo "make chapters [ONLY=01]        run the chapters again and save their outputs"
	@echo "make train RECIPE=...          train a recipe (mlore-edu recipes lists them)"
	@echo "make clean                     remove the environment and what was built; data and runs stay"

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || test "$$(df -Pk . | awk 'NR == 2 { print $$4 }')" -ge 14000000 || \
		{ echo "Installing takes up to 14 GB of disk for a while and keeps 7 GB; make room in this folder's disk."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "Python's venv module is missing; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) (a few minutes, about 7 GB) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable ".[book,test]"
	@touch $(READY)

lab: $(READY)
	$(BIN)/jupyter lab $(ROOT_FLAG) --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/$(CHAPTER) $(ARGS)

test: $(READY) lint unit notebooks book-check
	@echo "make test: everything passed"

check: $(READY) lint
	$(BIN)/python -m pytest tests -n 2 --dist loadfile -m "not slow and not book and not browser"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/python -m pytest tests -n 2 --dist loadfile -m "not book and not browser" --durations=8 \
		--cov=mlore_edu --cov-report=term --cov-fail-under=90

notebooks: $(READY)
	$(BIN)/python -m pytest book -n 2 --dist loadscope --nbval --nbval-current-env --nbval-cell-timeout=300 \
		-p no:cacheprovider --durations=8

book: $(READY)
	$(BIN)/jupyter-book build book -n -W --keep-going --all --quiet

pdf: book
	$(BIN)/python book/print/make_pdf.py

book-check: book
	$(BIN)/python -m pytest tests -m "book or browser" --durations=5

chapters: $(READY)
	OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/python book/execute.py $(ONLY)

train: $(READY)
	@test -n "$(RECIPE)" || { echo "Say which: make train RECIPE=dollhouse_baseline_nano"; exit 2; }
	$(BIN)/mlore-edu train $(RECIPE) $(ARGS)

clean:
	rm -rf $(VENV) _build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
