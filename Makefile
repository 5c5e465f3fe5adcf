# Targets: setup setup-research run test test-long check format bench bench-setup docs lock clean
# Windows without make: the README gives the same commands for PowerShell.

ifeq ($(OS),Windows_NT)
BIN := Scripts
else
BIN := bin
endif
VENV := .venv
PYTHON := $(VENV)/$(BIN)/python
BENCH_VENV := .venv-bench
BENCH_PYTHON := $(BENCH_VENV)/$(BIN)/python
CANDIDATES := python3.12 python3.13 python3.14 python3 python
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 14))
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --require-hashes -r
COMPILE := uv pip compile --quiet --universal --python-version 3.12 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header
BENCHMARKS := $(sort $(wildcard benchmarks/bench_*.py))

.PHONY: setup setup-research run test test-long check format bench bench-smoke bench-setup docs lock clean
.DEFAULT_GOAL := setup

# $(call environment,FOLDER,PYTHON IN IT,LOCK): installs only when the lock is not the one installed.
define environment
@if ! cmp -s $(3) $(1)/installed.txt || ! $(2) -c '' 2>/dev/null; then \
	found=; \
	for name in $(CANDIDATES); do \
		if "$$name" -c '$(SUITABLE)' >/dev/null 2>&1; then found=$$name; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "No suitable Python: install Python 3.12, 3.13 or 3.14 with its venv module (Debian, Ubuntu: apt install python3.12 python3.12-venv)." >&2; \
		exit 1; \
	fi; \
	echo "preparing $(1) with $$("$$found" --version)"; \
	"$$found" -m venv --clear $(1) && $(2) $(PIP_INSTALL) $(3) && cp $(3) $(1)/installed.txt; \
fi
endef

setup:
	$(call environment,$(VENV),$(PYTHON),requirements/dev.txt)

# What training needs (torch): a few GB, on top of the same environment.
setup-research: setup
	@if ! cmp -s requirements/research.txt $(VENV)/installed-research.txt; then \
		echo "adding requirements/research.txt to $(VENV)"; \
		$(PYTHON) $(PIP_INSTALL) requirements/research.txt && cp requirements/research.txt $(VENV)/installed-research.txt; \
	fi

run: setup
	$(PYTHON) main.py run --source demo

test: setup
	$(PYTHON) -m pytest -q -n 2 -m "not long" -p randomly --randomly-seed=1

test-long: setup
	HYPOTHESIS_PROFILE=long $(PYTHON) -m pytest -q -n 2 -m long --timeout 1200

check: setup
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy .

format: setup
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

# Each benchmark prints medians and ratios and writes bench-results/NAME.json.
bench: setup
	@mkdir -p bench-results
	@for file in $(BENCHMARKS); do \
		name=$$(basename $$file .py); echo "== $$name"; \
		$(PYTHON) -m benchmarks.$$name --json bench-results/$$name.json || exit 1; \
	done

bench-smoke: setup
	@mkdir -p bench-results
	@for file in $(BENCHMARKS); do \
		name=$$(basename $$file .py); echo "== $$name --smoke"; \
		$(PYTHON) -m benchmarks.$$name --smoke --json bench-results/$$name.smoke.json || exit 1; \
	done

# The libraries the benchmarks compare with live in an environment of their own.
bench-setup:
	$(call environment,$(BENCH_VENV),$(BENCH_PYTHON),requirements/bench.txt)

# The table of settings in docs/reference.md, from config.py.
docs: setup
	$(PYTHON) -m docs.settings_table

# Renews the locks from requirements/*.in; needs uv. No index address gets into them.
lock:
	$(COMPILE) $(UPGRADE) requirements/dev.in -o requirements/dev.txt
	$(COMPILE) $(UPGRADE) requirements/run.in -c requirements/dev.txt -o requirements/run.txt
	$(COMPILE) $(UPGRADE) requirements/research.in -c requirements/dev.txt -o requirements/research.txt
	$(COMPILE) $(UPGRADE) requirements/bench.in -o requirements/bench.txt

clean:
	rm -rf $(VENV) $(BENCH_VENV) bench-results .mypy_cache .ruff_cache .pytest_cache .hypothesis
