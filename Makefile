# `make demo` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROMPT ?= a yellow kettle
# Where the library is installed: here if it is, else where python3 finds it.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: demo test test-slow compat check docs format setup clean gpu-report gpu-train

demo: $(READY)  ## set up, then make a 3D asset from a prompt
	$(BIN)/distill "$(PROMPT)"

# With bytecode written, the processes that tests start need not compile every module again.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(READY)  ## set up, then run the tests, except for the slow ones
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix tests; \
	 else echo "npm is not here: the Khronos glTF validator's test will be skipped"; fi
	$(PYTEST) -m "not slow"

test-slow: $(READY)  ## set up, then run the slow tests
	$(PYTEST) -m slow

gpu-report:  ## what a GPU does with this library, in minutes, into build/gpu-report; DRY=1 tries it on the CPU, PARTS="a b" runs these
	$(GPU_PYTHON) examples/benchmarks/gpu/report.py --output $(or $(OUTPUT),build/gpu-report$(if $(DRY),-dry)) $(if $(DRY),--dry) $(if $(PARTS),--parts $(PARTS))

gpu-train:  ## train the bundled models on a GPU: WHAT=prior, novel_view, views or judge, MINUTES=8, OPTIONS=; run again to continue
	$(GPU_PYTHON) examples/benchmarks/gpu/train.py $(WHAT) --minutes $(or $(MINUTES),8) $(OPTIONS)

compat:  ## the tests that rest on other libraries, on their lowest and newest versions
	$(PYTHON) tests/compat.py

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typing
	$(BIN)/pip install --quiet --no-deps --target build/typing .
	MYPYPATH=build/typing $(BIN)/mypy --explicit-package-bases build/typing/distill
	MYPYPATH=build/typing:examples/embedded:examples/benchmarks:examples/benchmarks/gpu:examples/novel_view_ablation:examples/queues:examples/soak $(BIN)/mypy --explicit-package-bases examples/*.py examples/benchmarks/*.py examples/benchmarks/gpu/*.py examples/embedded/*.py examples/novel_view_ablation/*.py examples/queues/*.py examples/soak/*.py
	MYPYPATH=build/typing:examples/embedded:examples/benchmarks:examples/novel_view_ablation:tests $(BIN)/mypy --explicit-package-bases tests/*.py

docs: $(READY)  ## the pages under docs/, with an API reference, into build/docs; a broken link is an error
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

$(READY): setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "distill needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) .venv-compat build *.egg-info
