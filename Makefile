# make table1   set up what it needs, then Table 1 of the miniature study
# make test     set up what it needs, then the whole test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# One thread per process: Snakemake and pytest run as many processes as there are cores.
export OMP_NUM_THREADS ?= 1

.PHONY: table1 table2 figure1 all smoke test lint restore miniature_models install clean

table1: install
	snakemake --cores all --quiet rules -- results/table1.csv
	@cat results/table1.md

table2: install
	snakemake --cores all --quiet rules -- results/table2.csv
	@cat results/table2.md

figure1: install
	snakemake --cores all --quiet rules -- results/figure1.csv results/findings.csv
	@cat results/findings.md

all: install
	snakemake --cores all --quiet rules

# Every real format of models and data through the same rules, on random models.
smoke: install
	python tests/smoke_study.py data/smoke
	snakemake --cores all --quiet rules --configfile workflow/studies/smoke.yaml -- results/smoke/table1.csv
	@cat results/smoke/table1.md

test: install
	pytest -n 2 --dist loadfile

lint: install
	ruff check . && ruff format --check . && mypy && snakefmt --check Snakefile workflow

# After a clone: the versions that dvc.lock names, all of them whole, and nothing to recompute. DVC takes what it finds in
# the remote on trust, so everything is hashed.
restore: install
	@dvc pull || { COLUMNS=999 dvc remote list; echo "This remote did not give all that dvc.lock names: $(REMOTES)"; exit 1; } >&2
	@dvc status --quiet || { dvc status; exit 1; } >&2
	@python -m pipeline_lib verify || { echo "The remote holds files that are not whole: $(REMOTES)"; exit 1; } >&2
	@snakemake --cores all --touch --quiet all
restore: REMOTES = see README.md, Versions of the images

miniature_models: install
	snakemake --cores all -- miniature_models

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python >= 3.11 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing torch, diffusers, snakemake, dvc ... (about 6 GB, a few minutes)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[models,data,workflow,s3,dev]"
	touch $@

clean:
	rm -rf $(VENV) .snakemake logs
