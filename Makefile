# Two commands matter: `make demo` shows Paceline at work, `make test` says whether it is right.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PEERS := litellm[proxy]==1.106.2 sglang-router==0.3.2 aiocache==0.12.3 cashews==7.6.0 diskcache==5.6.3 \
  redis[hiredis]==8.1.0 uvloop==0.23.0
LLM_PEERS := aiperf==0.13.0
BENCHMARKS := $(patsubst benchmarks/%.py,%,$(filter-out benchmarks/__init__.py benchmarks/peers.py benchmarks/_%.py,$(wildcard benchmarks/*.py)))

.PHONY: demo test thorough check bench bench-peers docs setup setup-dev format clean

demo: $(VENV)/demo.ready
	$(BIN)/paceline tune workloads/support --speed 3

test: check
	$(BIN)/python -m pytest -n 2

# Every property on twenty times as many examples, and on fresh ones each time; for the night.
thorough: $(VENV)/dev.ready
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -n 2 --timeout=3600

check: $(VENV)/dev.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev.ready
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name --json || exit 1; done

bench-peers: $(VENV)/dev.ready $(VENV)-peers/ready $(VENV)-llm-peers/ready
	$(BIN)/python -m benchmarks.peers --json --locust $(BIN)/locust --aiperf $(VENV)-llm-peers/bin/aiperf
	$(BIN)/python -m benchmarks.gateway --json --litellm $(VENV)-peers/bin/litellm --peer $(VENV)-peers/bin/sglang-router
	$(BIN)/python -m benchmarks.cache --json --peers $(VENV)-peers/bin/python

$(VENV)-peers/ready: Makefile
	@echo "Installing the tools to compare with, apart (once; about 800 MB) ..."
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check $(PEERS)
	@touch $@

$(VENV)-llm-peers/ready: Makefile
	@echo "Installing AIPerf, apart from the others (once; 1.2 GB) ..."
	$(PYTHON) -m venv $(VENV)-llm-peers
	$(VENV)-llm-peers/bin/python -m pip install --quiet --disable-pip-version-check $(LLM_PEERS)
	@touch $@

docs: $(VENV)/dev.ready
	$(BIN)/python tests/docs/test_docs_reference.py

format: $(VENV)/dev.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/demo.ready
setup-dev: $(VENV)/dev.ready

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Paceline needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Paceline and what the example applications run on (once, about a minute) ..."
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/dev.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Paceline, the example applications and the development tools (once) ..."
	$(PIP) --editable '.[demo,dev]'
	@touch $@ $(VENV)/demo.ready

clean:
	rm -rf $(VENV) $(VENV)-peers $(VENV)-llm-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis build
