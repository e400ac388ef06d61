# vmtoken: what a developer runs. `make demo` and `make test` need only python3 and make.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup demo test check bench soak deb proto constraints clean \
	xen-lab xen-shell test-xen test-xen-all soak-xen

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

TEST_STAMP = $(VENV)/.installed-test

$(TEST_STAMP): $(STAMP) scripts/debian-packages.sh
	@scripts/debian-packages.sh
	pcsc=$$(pkg-config --exists libpcsclite 2>/dev/null && echo ,pcsc); \
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,interop,pkcs11$$pcsc]"
	@touch $@

demo: setup  ## the main job on the software element, step by step
	@$(BIN)/python deploy/dev/demo.py

test: $(TEST_STAMP)  ## everything, with the servers from Debian; installs them as root with apt, else says what is missing
	@scripts/debian-packages.sh
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup  ## lint, types, import contracts, generated code up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate.py --check

bench: $(TEST_STAMP)  ## ratios against Python's ssl; writes build/bench.json
	@scripts/debian-packages.sh
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

soak: $(TEST_STAMP)  ## 70,000 short sessions on one token: does anything grow?
	$(BIN)/python -m benchmarks.soak $(SOAK_ARGS)

XEN_LAB = scripts/debian-packages.sh xen && PYTHONPATH=deploy/xen-lab $(BIN)/python -m xenlab

xen-lab: setup  ## a real Xen in QEMU: build its images, boot it with two domUs, and stay (docs/xen-lab.md)
	@$(XEN_LAB) boot web01 web02

xen-shell: setup  ## a shell in the lab, in MACHINE (dom0, web01, ...)
	@$(XEN_LAB) shell $(MACHINE)

test-xen: setup  ## tests of the Xen lab, but for the long ones, in a lab booted for them; results in build/xen-lab/results
	@$(XEN_LAB) test -- $(PYTEST_ARGS)

test-xen-all: setup  ## the long ones too
	@$(XEN_LAB) test -- -m xen $(PYTEST_ARGS)

soak-xen: setup  ## agents and domains come and go for an hour in the lab: is anything left? (docs/xen-lab.md)
	@scripts/debian-packages.sh xen && PYTHONPATH=deploy/xen-lab $(BIN)/python -m tests.xen.soak $(SOAK_ARGS)

deb:  ## the Debian packages of HEAD, in build/deb; needs what deploy/debian/control says under Build-Depends
	@deploy/debian/build

proto: setup  ## generate vmtoken/v1 from proto/
	$(BIN)/python scripts/generate.py

constraints:  ## pin the newest versions of everything
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet '.[dev,interop,pcsc,pkcs11]'
	(echo '# The development set, pinned: a fresh clone installs the same tomorrow. Renew with "make constraints".'; \
	 build/constraints/bin/python -m pip freeze --exclude vmtoken) > constraints.txt

clean:
	rm -rf build $(VENV)
