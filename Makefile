# Two commands set up everything they need: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
RUNS ?= 20000
RUN := $(VENV)/bin/dp-sinkhorn
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow check lint fuzz clean

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

clean:
	rm -rf $(VENV) demo .mypy_cache .pytest_cache .ruff_cache

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
