# Each line is one that a person could type. Everything lives in .venv; nothing is installed elsewhere.
PYTHON ?= python3.11
RUN := .venv/bin

.PHONY: demo test lint bench pictures clean

demo: .venv/ready                  ## the main job on the embedded model: a table, and the path of report.html
	$(RUN)/tarazu run recipes/demo.yaml --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: .venv/ready-dev              ## all tests
	$(RUN)/pytest -n 2 --dist loadfile

lint: .venv/ready-dev              ## style, format and types
	$(RUN)/ruff check src tests benchmarks
	$(RUN)/ruff format --check src tests benchmarks
	$(RUN)/mypy

bench: .venv/ready-dev             ## speed beside the peers, as far as this machine can measure it, and the table in docs/performance.md
	$(RUN)/python -m benchmarks.run --into docs/performance.md

pictures: .venv/ready-dev          ## the README's pictures of the report, from the newest study in runs/
	$(RUN)/python docs/pictures/make.py

.venv/torch:
	command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is needed (or: make PYTHON=python3.12 ...)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	touch $@

.venv/ready: .venv/torch pyproject.toml constraints.txt
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,captions]'
	touch $@

.venv/ready-dev: .venv/ready
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,captions,onnx,dev]'
	touch $@

clean:                             ## remove the environment and the caches of tools (not the runs)
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
