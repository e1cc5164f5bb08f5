# Two commands set up everything they need: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
RUNS ?= 20000
RUN := $(VENV)/bin/dp-sinkhorn
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DIST_PIP := dist/.venv/bin/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test test-slow check lint fuzz dist check-dist clean

demo: $(VENV)/.installed
	rm -rf demo
	$(RUN) train digits --out demo/run --epsilon 10
	$(RUN) sample demo/run --num 1000 --out demo/digits.npz
	$(RUN) sample demo/run --num 1000 --out demo/digits.png
	$(RUN) evaluate demo/digits.npz --real digits --out demo/evaluation
	$(RUN) verify demo/run
	$(RUN) report demo/run --evaluation demo/evaluation --test-set-is-public
	@echo "Synthetic images: demo/digits.npz and demo/digits.png. The report: demo/run/report.html. What may be handed out: demo/run/release"

test: $(VENV)/.installed-dev
	@sh tests/install_browser.sh
	$(VENV)/bin/python -m pytest -n auto --dist worksteal

test-slow: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Before every commit: lint, types, and the tests that tell most for their time.
check: lint
	$(VENV)/bin/python -m pytest -q -m quick -n 2

# Coverage-guided fuzzing of the readers of data, cards and ledgers: `make fuzz RUNS=1000000` for an evening.
fuzz: $(VENV)/.installed-fuzz
	for reader in idx pickle matlab card ledger; do $(VENV)/bin/python fuzz/readers.py $$reader -runs=$(RUNS) || exit 1; done

# The sdist, and the wheel that pip builds from it, with a new environment.
dist:
	rm -rf dist
	$(PYTHON) -m venv dist/.venv
	$(DIST_PIP) install -c constraints.txt setuptools
	dist/.venv/bin/python -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")'
	$(DIST_PIP) wheel --no-deps --wheel-dir dist dist/*.tar.gz

# The quick tests of the sdist on the wheel, installed into that environment: `make check-dist PYTHON=python3.13`.
check-dist: dist
	$(DIST_PIP) install -c constraints.txt "$$(echo dist/*.whl)[dev]"
	mkdir dist/check
	tar -xzf dist/*.tar.gz -C dist/check --strip-components 1
	cd dist/check && ../.venv/bin/python -m pytest -q -m quick -n 2

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[eval,report]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed
	$(PIP) --editable '.[fuzz]'
	touch $@
