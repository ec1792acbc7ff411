# Two doors: `make demo` and `make test`. Both make `.venv` first, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
WORKERS ?= 2

.PHONY: help install demo test bench export notebooks findings clean

help:            ## show this list
	@grep -hE '^[a-z]+: .*##|^[a-z]+:  *##' Makefile | sed -E 's/:[^#]*## /	/'

install: .venv/.installed   ## make .venv and install the package with its pins

.venv/.installed: constraints.txt settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install   ## the main job on the embedded micro world: tickets, a table, a figure
	$(BIN)/lottery-nb sweep grids/demo.yaml --runs $(RUNS)/demo --workers $(WORKERS)
	$(BIN)/lottery-nb results --runs $(RUNS)/demo --summary --figure $(RUNS)/demo/score_against_sparsity.png

test: install   ## the whole suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

bench: install   ## speed and memory, as ratios in one process
	for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

export: install   ## notebooks -> package, then clean the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

notebooks: install   ## execute every notebook in place, keeping the outputs a reader needs
	$(BIN)/python tests/execute_notebooks.py

findings: install   ## the README's table of findings, from the results tables beside the reports
	$(BIN)/python -c "from lottery_nb.findings import write_findings; write_findings('README.md')"

docs: install   ## the docs site, _docs/site/index.html
	$(BIN)/python tests/build_docs.py

clean:   ## remove everything that can be made again
	rm -rf .venv _docs $(RUNS) build dist *.egg-info .pytest_cache .hypothesis
