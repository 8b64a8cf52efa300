# make search: the built-in search, from nothing.   make test: the tests.   make check: lint, types, import order.
# make test-long: tests of whole clusters, of a minute and more each.   make soak: a search under a hundred kills.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: search test test-long check soak clean

search: $(READY)
	$(BIN)/crh-tune search

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-long: $(READY)
	$(BIN)/python -m pytest -m long

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(READY)
	$(BIN)/python benchmarks/soak.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv crh_runs
