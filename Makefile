# make demo       certify shipped models on shipped data (creates .venv on the first call)
# make test       the test suite without the tests marked long
# make test-long  the tests marked long
# make bench      the ratios of PERFORMANCE.md
# make docs       the documentation into site/, which opens without a server or a network
# make pictures   the pictures and notebooks of README and documentation anew, from real runs; RUN=runs/x: of its report
# make models     train the zoo anew where its recipes changed (hours), and measure it
# make check      format, lint, types, layers, packaging
#
# Needs python3 >= 3.11 and make. PYTHON=python3.12 picks another interpreter; PIP_ARGS goes to pip install,
# for example PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for torch without CUDA.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
PYTEST_ARGS ?=
ZOO_ARGS ?=
RUN ?=
# Two test processes; each keeps to one thread, so that the numbers do not depend on the machine.
JOBS ?= 2

DEMO_MODEL := models/digits_cnn_robust.onnx
DEMO_EPS := 4/255,16/255
DEMO_NOISE_MODEL := models/digits_cnn_noise.onnx

.PHONY: demo test test-long bench docs pictures models check install dev clean

# Stamps, so that repeated calls do not install again.
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev

demo: $(CORE)
	$(BIN)/certify run $(DEMO_MODEL) --eps $(DEMO_EPS)
	$(BIN)/certify smooth $(DEMO_NOISE_MODEL) --sigma 0.25 --eps 0.25 --sequential --samples 100

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-long: $(DEV)
	$(BIN)/python -m pytest -m long --timeout 3600 $(PYTEST_ARGS)

bench: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bounds.py

docs: $(DEV)
	$(BIN)/mkdocs build --quiet --clean

pictures: $(DEV)
	$(BIN)/python docs/hooks/pictures.py $(RUN)

models: $(CORE)
	$(BIN)/python -m certify.models.make_digits
	$(BIN)/python -m certify.zoo --workers $(JOBS) $(ZOO_ARGS)

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_packaging.py

install: $(CORE)

dev: $(DEV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "certify needs Python 3.11 or newer; call make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@ $(CORE)

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
