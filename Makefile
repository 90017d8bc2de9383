# On a bare machine with Python >= 3.11: `make test` and `make demo` make .venv, install and run.

# The newest Python that runs: a name on the PATH may be a launcher for a version that is not installed.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
            $$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && \
            echo $$p && break; done)
RUN := .venv/bin/python
STAMP := .venv/.installed
WORKERS ?= 2
OUT ?= demo

.PHONY: venv test test-slow demo lint clean

venv: $(STAMP)

# The stamp is newer than requirements.txt once everything in it is installed, so nothing is installed twice.
$(STAMP): requirements.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv was found; name one: make PYTHON=/path/to/python3"; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1)"; exit 1; }
	@test -x $(RUN) && $(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

test: venv
	$(RUN) -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: venv
	$(RUN) -m pytest -m slow

demo: venv
	$(RUN) -m tools.demo --out=$(OUT)

lint: venv
	$(RUN) -m ruff check .

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
