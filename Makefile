# make run      a demo API and the gateway in front of it; or the gateway in front of yours: make run UPSTREAM=http://host:port
# make test     the tests; some of them: make test TESTS=tests/test_config.py
#               against another server: make test TEST_REDIS_SERVER=/usr/bin/redis-server
# make lint     style; make types: types; make coverage: what the tests reach
# make bench    what a request costs (about ten minutes; needs wrk); some of it: make bench BENCH="--only pass --seconds 1"
#               it measures the hot path as C, as the image has it; PLAIN=1: as it stands in the files
# make chaos    what clients notice while Redis is killed, stopped, moved, ... (about eight minutes); some of it:
#               make chaos CHAOS="--only sentinel,killed"
# With COMPILED=1 behind it each of run, test, bench and chaos takes the hot path as C, from build/compiled: that takes
# a C compiler, Python's headers and a minute or two, once for each change.
# make lock     new requirements*.lock from pyproject.toml
# make clean    remove what was made here

VENV ?= .venv
BIN := $(VENV)/bin
TESTS ?=
BENCH ?=
CHAOS ?=
COMPILED ?=
PLAIN ?=
export TEST_REDIS_SERVER

# The first Python on the path that is new enough; another one: make run PYTHON=/path/to/python
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

ifeq ($(COMPILED),1)
# First there, then here; never by where a command happens to be called.
export PYTHONSAFEPATH := 1
export PYTHONPATH := $(CURDIR)/build/compiled:$(CURDIR)
TRANSLATED := build/compiled/.made
endif
SOURCES := $(shell find gateway plugins -type f -not -name '*.pyc')

.PHONY: run test lint types coverage bench chaos lock clean

run: $(VENV)/.installed $(TRANSLATED)
ifdef UPSTREAM
	@$(BIN)/gateway run --no-config --upstream '$(UPSTREAM)'
else
	@$(BIN)/gateway demo
endif

test: $(VENV)/.installed-dev $(TRANSLATED)
	$(BIN)/python -m pytest -q --import-mode=append $(TESTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/mypy

coverage: $(VENV)/.installed-dev
	$(BIN)/coverage run -m pytest -q $(TESTS)
	$(BIN)/coverage report --skip-covered --show-missing

ifneq ($(COMPILED)$(PLAIN),)
bench: $(VENV)/.installed $(TRANSLATED)
	@$(BIN)/python -m bench $(BENCH)
else
bench:
	@command -v cc >/dev/null || { echo 'a C compiler (cc) is needed to measure what the image runs; without: make bench PLAIN=1' >&2; exit 1; }
	@$(MAKE) --no-print-directory bench COMPILED=1
endif

chaos: $(VENV)/.installed $(TRANSLATED)
	@$(BIN)/python -m tests.chaos $(CHAOS)

$(VENV)/.made:
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed; name one with PYTHON=/path/to/python' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made requirements.lock pyproject.toml
	$(PIP) install -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(PIP) install -r requirements-dev.lock
	@touch $@

build/compiled/.made: $(VENV)/.installed-dev setup.py config.toml $(SOURCES)
	rm -rf build/compiled build/lib* build/temp* build/bdist*
	GATEWAY_COMPILED=1 PYTHONPATH= $(PIP) install --no-deps --no-build-isolation --target build/compiled .
	cp config.toml build/compiled/
	@touch $@

lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade 'setuptools>=77'
	build/lock/bin/python -m pip install --quiet .
	{ head -n 1 requirements.lock; build/lock/bin/python -m pip freeze --all --exclude pip --exclude redis-gateway; } > build/requirements.lock
	build/lock/bin/python -m pip install --quiet '.[dev]'
	{ head -n 1 requirements-dev.lock; echo '-r requirements.lock'; \
	  build/lock/bin/python -m pip freeze --all --exclude pip --exclude redis-gateway | grep -vxFf build/requirements.lock; } > build/requirements-dev.lock
	mv build/requirements.lock build/requirements-dev.lock .

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
