# make sample, make test: all set-up is inside; both work offline once .venv is complete.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: sample test setup lint clean

sample: .venv/runtime
	.venv/bin/python sample.py --checkpoint nano --out out/sample --overwrite

test: .venv/dev lint
	.venv/bin/python -m pytest --numprocesses 2 --dist worksteal

setup: .venv/dev

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
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
	@touch $@ .venv/runtime

clean:
	rm -rf .venv out
