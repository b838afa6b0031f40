# Every target installs what it needs into .venv first. Needs only make, git and Python 3.11 to 3.13; uses uv when present.

.PHONY: help quickstart test fast-tests test-slow lint bench
.DEFAULT_GOAL := help

BIN := .venv/bin
RUN_STAMP := .venv/.installed-run
DEV_STAMP := .venv/.installed-dev
QUICKSTART := runs/quickstart
# Simulated devices, so that a laptop runs the sharded program of a pod. Any number works; two suit two cores best.
DEVICES := --cpu_devices=2
# Compiling is most of what the fast tests cost; what they check does not need optimised code. The slow set does without.
QUICK_COMPILE := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false \
  --xla_cpu_parallel_codegen_split_count=1

help:
	@echo "make quickstart   train a small world-action model and evaluate it (results in $(QUICKSTART))"
	@echo "make test         what CI runs: format, lint, types, fast tests"
	@echo "make test-slow    the tests that take more than a few seconds each"
	@echo "make lint         format, lint and types alone"
	@echo "make bench        speed and memory, each against a named reference"

# Both commands are safe to repeat: an interrupted run resumes, a finished one is evaluated again.
quickstart: $(RUN_STAMP)
	$(BIN)/wamjax train --config=experiments/quickstart.py --workdir=$(QUICKSTART) $(DEVICES)
	$(BIN)/wamjax eval --workdir=$(QUICKSTART) $(DEVICES)

# Types are checked while the tests run: neither uses all cores all the time.
test: $(DEV_STAMP)
	@$(MAKE) --no-print-directory -j2 lint fast-tests

fast-tests: $(DEV_STAMP)
	XLA_FLAGS="$$XLA_FLAGS $(QUICK_COMPILE)" $(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(DEV_STAMP)
	$(BIN)/pytest -m slow

lint: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(RUN_STAMP)
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

$(RUN_STAMP): pyproject.toml uv.lock
	$(call install,)
	@touch $@

$(DEV_STAMP): pyproject.toml uv.lock
	$(call install,dev)
	@touch $@

# $(1): an extra besides `sim`. The simulator is needed for closed-loop rollouts only, so a machine that cannot have it
# gets everything else, and is told. uv installs the versions of uv.lock; pip the newest that pyproject.toml allows.
comma := ,
define install
	@set -e; echo "Installing into .venv (seconds with uv, some minutes with pip) ..."; \
	if uv --version >/dev/null 2>&1; then \
	  uv sync --frozen --inexact --extra sim $(addprefix --extra ,$(1)) || { \
	    echo "The sim extra could not be installed; going on without closed-loop rollouts." >&2; \
	    uv sync --frozen --inexact $(addprefix --extra ,$(1)); }; \
	else \
	  python=$(call find_python) ; \
	  if [ -z "$$python" ]; then \
	    echo "No Python 3.11, 3.12 or 3.13 found on PATH; install one, or uv (https://docs.astral.sh/uv/)." >&2; exit 1; \
	  fi; \
	  "$$python" -m venv .venv || { echo "$$python -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }; \
	  $(BIN)/python -m pip install -q -e '.[sim$(addprefix $(comma),$(1))]' || { \
	    echo "The sim extra could not be installed; going on without closed-loop rollouts." >&2; \
	    $(BIN)/python -m pip install -q -e '.[$(1)]'; }; \
	fi
endef

# The first interpreter that runs and has a supported version (a name on PATH may be a shim that does not run).
find_python = $$(for name in python3 python3.13 python3.12 python3.11; do \
	  if "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then \
	    echo "$$name"; break; fi; done)
