# Every target does its own set-up in .venv; only Python 3.11+ and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check once-wrong slow coverage torture papers docs docs-data bench clean
.DELETE_ON_ERROR:

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[tests]'
	@touch $@

demo: $(STAMP) ## the main job on real data that ship with scikit-learn
	$(BIN)/bilevel demo

# Python keeps what it compiles of the sources and tests, also where the environment says it should not:
# without, each worker takes 20 s of CPU time to compile them anew, at every run.
test: $(STAMP) ## all tests but the slow ones
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 -m "not slow"

check: $(STAMP) ## format, lint, types, doctests
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

once-wrong: $(STAMP) ## what was once wrong or silent, a line per kind
	$(BIN)/python scripts/once-wrong

slow: $(STAMP) ## full-size runs; the MNIST ones need BILEVEL_DATA
	BILEVEL_TESTS_CHECK_ALL=1 $(BIN)/python -m pytest -m slow

coverage: $(STAMP) ## the lines of src that no quick test reaches
	$(BIN)/python -m pip install --quiet pytest-cov
	$(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term-missing:skip-covered

torture: $(STAMP) ## faults at every call, signals at random moments, mutated files; hours
	$(BIN)/python tests/faults/torture.py

papers: $(STAMP) ## every figure and table of the papers, quick, in out/papers, two at a time
	$(BIN)/python papers/_all.py --out out/papers

docs: $(STAMP) ## the documentation site in out/site/site, with every link checked
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python scripts/site

docs-data: $(STAMP) ## the measured parts of README and docs, from the reports
	$(BIN)/python scripts/docs_data
	$(BIN)/python scripts/structure --write

bench: $(STAMP) ## measured against hand-written floors; needs BILEVEL_DATA
	$(BIN)/python benchmarks/soba_step.py
	$(BIN)/python benchmarks/step_time.py
	$(BIN)/python benchmarks/algorithms.py
	$(BIN)/python benchmarks/near_exact.py
	$(BIN)/python benchmarks/hypergradients.py
	$(BIN)/python benchmarks/nystrom.py
	$(BIN)/python benchmarks/penalties.py
	$(BIN)/python benchmarks/several_minima.py
	$(BIN)/python benchmarks/reweighting.py

clean:
	rm -rf $(VENV) out build dist
