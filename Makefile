# make report   executes every chapter on the embedded pair and builds the book: _build/html/index.html
# make install  sets up .venv, as the others do when it is missing
# make test     lints, checks types and the rooms' order, runs the tests, and checks the reference notebooks
# make compare  executes every chapter twice, from nothing, and compares all that the pages print
# make reference  renews tests/reference/ from the chapters at scale smoke
# make real     fetches two real models (330 MB), runs the chapters on them (about an hour), and records the run
PYTHON ?= python3
VENV := .venv
# axe-core for tests/check_book.py; the package's one dependency, a driver of browsers, is not used
AXE := axe-playwright-python==0.1.8
REAL := tools/real.yml
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install report test reference compare real clean

install: $(STAMP)

report: $(STAMP)
	$(BIN)/stitch-book run
	$(BIN)/stitch-book build

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=5
	$(BIN)/python -m pytest -q --nbval-lax --nbval-current-env -o addopts= tests/reference

reference: $(STAMP)
	$(BIN)/python tests/renew_reference.py

compare: $(STAMP)
	$(BIN)/python tests/compare_builds.py

real: $(STAMP)
	$(BIN)/python -m tools.real_models
	$(BIN)/stitch-book run --pair $(REAL) --scale real
	$(BIN)/stitch-book record --pair $(REAL)

# The stamp is written last: an interrupted install is taken up again by the next call.
$(STAMP): requirements.lock pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(AXE) --editable .
	touch $(STAMP)

clean:
	rm -rf _build book/runs results artifacts
