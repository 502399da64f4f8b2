# make sample, make test: all set-up is inside; both work offline once .venv is complete.
# make test-slow: the tests that take longest. make mutants: breaks the code line by line, to see a test fail for each.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: sample test test-slow mutants setup lint clean

sample: .venv/runtime
	.venv/bin/python sample.py --checkpoint nano --out out/sample --overwrite

test: .venv/dev lint
	.venv/bin/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

test-slow: .venv/dev
	.venv/bin/python -m pytest --numprocesses 2 --dist worksteal -m slow

mutants: .venv/dev
	.venv/bin/python tests/mutations.py

setup: .venv/dev

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-cache --no-logo
	.venv/bin/shellcheck --external-sources --source-path=SCRIPTDIR tpu_scripts/*.sh .ci/run

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "fourreal needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Install one, or name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "fourreal needs Python's venv module, and '$(PYTHON)' has none. Install it (on Debian and Ubuntu: python3-venv)"; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/runtime: .venv/created pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

.venv/dev: .venv/created pyproject.toml constraints.txt
	$(PIP) -e '.[train,render,eval,dev]'
	@# The compiler for TPUs, where only `fourreal plan` looks: JAX would ask it for TPUs in every script, with a page of errors.
	[ "$$(uname -sm)" != "Linux x86_64" ] || $(PIP) --no-deps --upgrade --target .venv/tpu-compiler libtpu
	@touch $@ .venv/runtime

clean:
	rm -rf .venv out
