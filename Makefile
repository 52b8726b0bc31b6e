# anomaly_vae: every job a person or a build server runs. `make help` lists them.

PYTHON      ?= python3
# Name a wheel index for torch, for example the CPU-only or a CUDA index from PyTorch's install page; empty: pip's own choice.
TORCH_INDEX ?=
# Folder of labelled .npz tables (X, y with 1 = anomaly, as ADBench has them) for `make bench-tables`; empty: scikit-learn's
# breast-cancer table alone. For `make bench-missing`: folder of adult.data and adult.test. BENCH_ARGS: further options, for
# example '--detector anomaly_vae --detector knn --seeds 1'.
DATA        ?=
BENCH_ARGS  ?=
PYTEST_ARGS ?=

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.installed
PIP   := $(BIN)/python -m pip -qq --disable-pip-version-check
# pip compiles on one core, and tests that nobody runs; what does not compile here is a template, or never imported.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true

export MLFLOW_DISABLE_TELEMETRY = true

.DEFAULT_GOAL := help
.PHONY: help install venv demo test whole lint slow bench bench-tables bench-missing bench-images bench-binarized bench-promises bench-service bench-batch
.PHONY: audit bench-debias docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: install ## the same as install
install: $(READY) ## create .venv with the pinned dependencies and this package, editable

$(READY): pyproject.toml constraints.txt $(wildcard anomaly_vae/models/*.[ch])
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python must be 3.11 to 3.13, got %d.%d. Name one: make PYTHON=python3.12" % v)'
	@echo "installing into $(VENV) (pinned by constraints.txt; the first time takes some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-compile $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	@$(COMPILE)
	@touch $@
	@$(BIN)/python -c 'import torch; from anomaly_vae.models.compiled import precisions; print("installed: torch", torch.__version__ + "; compiled for:", ", ".join(precisions()) or "nothing, torch computes all")'

demo: $(READY) ## train, register, batch-score, serve, explain and rebalance on real data (about a minute)
	@$(BIN)/python pipelines/demo.py

# One thread in each of the two processes: more only get in each other's way, and take half as long again.
test: $(READY) ## the tests that belong before every commit
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

whole: $(READY) ## the demo, the README's examples, benchmarks, killed jobs and services: whole, as a user runs them
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m whole -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

slow: $(READY) ## the statistical and long-running tests
	@$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(READY) ## style, types and the layering of the rooms
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY) ## speed and memory on this machine
	@$(BIN)/python pipelines/bench.py

bench-tables: $(READY) ## accuracy beside PyOD's detectors; DATA=folder of labelled tables; goes on where it stopped
	@$(BIN)/python pipelines/benchmark.py $(if $(DATA),--data $(DATA)) $(BENCH_ARGS)

bench-missing: $(READY) ## accuracy with missing cells beside PyOD's detectors; DATA=folder of the census table Adult
	@$(BIN)/python pipelines/missing.py $(if $(DATA),--data $(DATA)) $(BENCH_ARGS)

bench-images: $(READY) ## image outliers, one class against the rest, cost; DATA=an .npz of images or a folder of them
	@$(BIN)/python pipelines/bench_images.py $(if $(DATA),--data $(DATA)) $(BENCH_ARGS)

bench-binarized: $(READY) ## test log-likelihood of binarised MNIST; DATA=folder of binarized_mnist.npz; BENCH_ARGS='--model ladder'
	@$(BIN)/python pipelines/binarized.py $(if $(DATA),--data $(DATA)) $(BENCH_ARGS)

bench-promises: $(READY) ## false alarms, false discoveries and reasons on labelled tables; DATA=their folder
	@$(BIN)/python pipelines/promises.py $(if $(DATA),--data $(DATA)) $(BENCH_ARGS)

bench-service: $(READY) ## the service under load, beside a pass-through model; its memory; 10,000 requests of rubbish (about an hour)
	@$(BIN)/python pipelines/bench_service.py $(BENCH_ARGS)

bench-debias: $(READY) ## rare groups made to count: recipes, controls and an oracle by group; DATA=folder of mnist/, adult/ and so on
	@$(BIN)/python pipelines/debias.py $(if $(DATA),--data $(DATA)) $(BENCH_ARGS)

bench-batch: $(READY) ## a folder of parts scored in a stream beside scoring in memory; BENCH_ARGS='--rows 20000000'
	@$(BIN)/python pipelines/bench_batch.py $(BENCH_ARGS)

audit: $(READY) ## look the pinned dependencies up among known vulnerabilities; says so where that is not possible
	@test -x $(VENV)-audit/bin/pip-audit || ($(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip -qq install 'pip-audit>=2.10')
	@$(BIN)/python pipelines/audit.py constraints.txt --pip-audit $(VENV)-audit/bin/pip-audit

docs: $(READY) $(VENV)/.docs ## run every example of README, docs/ and docstrings, then build the documentation into build/site
	@$(BIN)/python -m pytest tests/test_readme.py -m '' $(PYTEST_ARGS)
	@$(BIN)/python -m pytest --doctest-modules anomaly_vae $(PYTEST_ARGS)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -f docs/site/mkdocs.yml
	@echo "built: build/site/index.html"

$(VENV)/.docs: $(READY)
	@$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

clean: ## remove .venv, caches and builds; tracked runs under mlruns/ stay
	rm -rf $(VENV) $(VENV)-audit build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
