# make search: the built-in search, from a fresh checkout.   make test: the tests.   make check: lint, types, import order.
# make test-long: more tests, of about a minute and more each.   make soak: a search under a hundred kills.
# make bench: the tables of benchmarks/RESULTS.md: speed against named references.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
HERE := $(dir $(lastword $(MAKEFILE_LIST)))
STARTS_RAY := ray_session|run_search|ray\.init|Driver|subprocess
WITH_RAY := $(shell cd $(HERE) && grep -lE '$(STARTS_RAY)' tests/end_to_end/test_*.py tests/tuning/test_*.py)

.PHONY: search test test-long check soak bench clean

search: $(READY)
	$(BIN)/crh-tune search

# The tests that start Ray, and beside them, on the second core, all others; last what failed of both.
test: $(READY)
	@$(BIN)/python -m pytest $(WITH_RAY:%=--ignore=%) > .tests_without_ray.log 2>&1 & others=$$!; \
	{ $(BIN)/python -m pytest $(WITH_RAY) 2>&1; echo $$? > .tests_with_ray.code; } | tee .tests_with_ray.log; \
	wait $$others; without=$$?; with=$$(cat .tests_with_ray.code); cat .tests_without_ray.log; echo; \
	grep -hE '^(FAILED|ERROR) ' .tests_with_ray.log .tests_without_ray.log; \
	echo "tests with Ray     $$(tail -n 1 .tests_with_ray.log)"; \
	echo "tests without Ray  $$(tail -n 1 .tests_without_ray.log)"; \
	if [ $$with$$without = 00 ]; then echo "all tests passed"; \
	else echo "some tests failed: named above; .tests_with_ray.log and .tests_without_ray.log say why"; exit 1; fi

test-long: $(READY)
	$(BIN)/python -m pytest -m long

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(READY)
	$(BIN)/python benchmarks/soak.py

bench: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,faiss]'
	@for line in evaluation reassignment index step "trials --many 100" "start --whole" "scale --trials 300" growth; do \
	$(BIN)/python -m benchmarks.$$line || exit 1; echo; done

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m crh_tune.precompile
	touch $(READY)

clean:
	rm -rf .venv crh_runs
