# Two doors: `make demo` and `make test`. Both make `.venv` first, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
WORKERS ?= 2

.PHONY: help install demo english test bench export notebooks findings docs clean

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

DATA ?= $(LOTTERY_NB_DATA)
FOLDER = $(if $(DATA),$(wildcard $(DATA)/.))
TASK ?= $(if $(FOLDER),sst2,$(DATA))
english: install   ## the main job on a real English BERT and your data: DATA=reviews.csv, or DATA=glue_data/ TASK=sst2, or TASK=sst2 from the Hub
	@test -n "$(TASK)" || { echo "make english needs data: DATA=reviews.csv (texts and labels), DATA=glue_data/ TASK=sst2 (LOTTERY_NB_DATA counts as DATA), or TASK=sst2 alone for the Hub" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[english]'
	LOTTERY_NB_DATA="$(if $(FOLDER),$(DATA))" LOTTERY_NB_TASK="$(TASK)" $(BIN)/lottery-nb sweep grids/english.yaml --runs $(RUNS)/english --workers $(WORKERS)
	$(BIN)/lottery-nb results --runs $(RUNS)/english --summary --figure $(RUNS)/english/score_against_sparsity.png
	$(BIN)/lottery-nb claims chen_2020 --runs $(RUNS)/english

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
