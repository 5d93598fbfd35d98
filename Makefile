# Except for gpu, hub-kernel, wheel, test-wheel and docs, targets set up what they need in $(VENV), given
# Python 3.10+, make and a C++17 compiler.
#   make test   make test-served   make test-integrations   make test-matrix   make test-hub   make hub-kernel
#   make demo   make bench   make bench-readme   make docs   make wheel   make test-wheel   make lint   make gpu
#   make clean
# Variables: PYTHON, TORCH, CUDA (AUTO, ON or OFF: build the CUDA kernels), ARGS (more arguments for pytest, demo,
# bench or hub/build.py), MATRIX (the versions that test-matrix tests).

PYTHON ?= $(firstword $(shell command -v python3.11 || command -v python3))
TORCH ?= torch==2.13.0
CUDA ?= AUTO
VENV ?= .venv
ARGS ?=

RUN := $(VENV)/bin/python
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-input
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
.DELETE_ON_ERROR:
.PHONY: test test-slow test-long test-served test-matrix test-hub hub-kernel demo bench bench-readme docs lint clean help
.PHONY: wheel test-wheel test-integrations

help:
	@sed -n '1,7s/^# *//p' Makefile

# --- the environment --------------------------------------------------------------------------------------

$(VENV)/torch.stamp:
	@test -n "$(PYTHON)" || { echo "No Python found: install Python 3.11, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@echo "[setup 1/3] a virtual environment in $(VENV), from $(PYTHON)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment. On Debian or Ubuntu: apt install python3.11-venv;"; \
	  echo "or name another Python (3.10 or newer): make PYTHON=/path/to/python3"; exit 1; }
	@echo "[setup 2/3] $(TORCH) (a few minutes on a slow line)"
	@$(PIP) $(TORCH) || { rm -rf $(VENV); \
	  echo "Could not install $(TORCH). Is the package index reachable? Another build: make TORCH='torch>=2.6'"; exit 1; }
	@touch $@

# An editable install: Python imports the sources from here and the compiled fastkd._C from $(VENV).
# Without build isolation the compiler's arguments stay the same, so only changed files are compiled again.
$(VENV)/fastkd.stamp: $(VENV)/torch.stamp $(BUILD_INPUTS)
	@echo "[setup 3/3] compiling fastkd (FASTKD_CUDA=$(CUDA); one minute, with CUDA two to three) and installing the rest"
	@$(PIP) scikit-build-core pybind11 cmake ninja
	@$(PIP) --no-build-isolation --config-settings=cmake.define.FASTKD_CUDA=$(CUDA) --editable '.[train,triton,test,dev]' || { \
	  echo "Could not build or install fastkd: the messages above say why. A C++17 compiler is needed (apt install g++);"; \
	  echo "where the CUDA part is what fails: make CUDA=OFF"; exit 1; }
	@touch $@

# The peers of the benchmarks are optional: the table omits those that are not installed.
$(VENV)/bench.stamp: $(VENV)/fastkd.stamp
	@echo "[setup] the benchmarks' peers"
	@$(PIP) 'fastkd[bench]' || echo "Some peers could not be installed: the table will do without them."
	@touch $@

# --- tests, demo, benchmarks, lint ------------------------------------------------------------------------

# $(call both,MARKS,ENVIRONMENT): runs the tests with these marks in two lanes, one for each of two cores. The
# second lane, whose output comes at the end, has the interpreted Triton kernels and then the tests of SECOND.
# pytest exits with 5 if ARGS select none of its tests, which is no failure as long as another part has some.
# The quick tests have one thread in each lane, which saves a third of the processor time; tests of threads
# choose their own number.
SECOND := tests/runs tests/native tests/divergences tests/docs
both = mkdir -p build; trap 'kill $$second 2>/dev/null' INT TERM; \
  echo "A second process runs the interpreted Triton kernels and $(SECOND); its output comes at the end."; \
  { TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(RUN) -m pytest tests -m "$(1) and triton_interpret" $(ARGS); first=$$?; \
    OMP_NUM_THREADS=1 $(RUN) -m pytest $(SECOND) -m "$(1) and not triton_interpret" $(ARGS); \
    echo "$$first $$?" >build/test-second.status; } >build/test-second.log 2>&1 & second=$$!; \
  $(2) $(RUN) -m pytest tests $(SECOND:%=--ignore=%) -m "$(1) and not triton_interpret" $(ARGS); main=$$?; \
  echo "The second process:"; wait $$second; cat build/test-second.log; \
  case "$$main $$(cat build/test-second.status)" in "5 5 5"|*[!05\ ]*) false;; esac

test: $(VENV)/fastkd.stamp
	@$(call both,not slow and not long and not served,OMP_NUM_THREADS=1)

test-slow: $(VENV)/fastkd.stamp
	@$(call both,slow)

test-long: $(VENV)/fastkd.stamp
	$(RUN) -m pytest tests -m "long" $(ARGS)

# Tests a served teacher against a real server of vLLM (its CPU build), which is installed in build/vllm, and then, with
# the Python of that environment, sampling by an engine in the same process. pytest exits with 5 if ARGS select none.
VLLM ?= build/vllm

test-served: $(VENV)/fastkd.stamp
	@echo "[setup] vLLM in $(VLLM) (a few minutes, 6 GB)"
	@mkdir -p $(dir $(VLLM)) && bash tests/served/serve.sh $(VLLM)
	@bash tests/served/beside.sh $(VLLM)
	FASTKD_VLLM=$(abspath $(VLLM)) $(RUN) -m pytest tests/served -m served $(ARGS) || [ $$? -eq 5 ]
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/served/test_engine.py $(ARGS) || [ $$? -eq 5 ]

# Tests the adapters with the libraries that they are for, which are installed in build/integrations. fastkd there is
# this checkout, with the compiled part of $(VENV). pytest exits with 5 if ARGS select none.
INTEGRATIONS ?= build/integrations

test-integrations: $(VENV)/fastkd.stamp
	@echo "[setup] the libraries in $(INTEGRATIONS) (a few minutes, 3 GB)"
	@bash tests/integrations/install.sh $(RUN) $(INTEGRATIONS) $(TORCH)
	OMP_NUM_THREADS=1 $(INTEGRATIONS)/bin/pytest tests/integrations $(ARGS) || [ $$? -eq 5 ]

# Tests the losses with other versions of torch, each in an environment of its own in build/matrix.
# tests/project/matrix.py defines the entries. The first is the oldest Python and torch that pyproject.toml supports,
# the second the newest torch.
MATRIX ?= python3.10:torch==2.6.0 torch
MATRIX_OPTIONS ?=

test-matrix:
	@test -n "$(PYTHON)" || { echo "No Python found: name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) tests/project/matrix.py $(MATRIX_OPTIONS) $(MATRIX) --pytest $(ARGS)

# Writes the kernel for the Hugging Face hub, out of the Python sources alone.
hub-kernel:
	@test -n "$(PYTHON)" || { echo "No Python found: name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) hub/build.py --out build/hub-kernel $(ARGS)

# Tests that kernel with the package that loads it, which is installed in build/kernels. pytest exits with 5 if ARGS
# select none of its tests.
build/kernels.stamp: $(VENV)/fastkd.stamp
	@echo "[setup] the package kernels in build/kernels"
	@$(PIP) --upgrade --target build/kernels 'kernels>=0.17'
	@touch $@

test-hub: build/kernels.stamp
	OMP_NUM_THREADS=1 PYTHONPATH=build/kernels $(RUN) -m pytest tests/hub/test_kernels.py -m "not triton_interpret" \
	  $(ARGS) || [ $$? -eq 5 ]
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 PYTHONPATH=build/kernels $(RUN) -m pytest tests/hub/test_kernels.py \
	  -m triton_interpret $(ARGS) || [ $$? -eq 5 ]

# The source distribution and the wheels for $(PYTHON), in dist: one for CPUs and, unless CUDA is OFF or there is no nvcc,
# one with the CUDA kernels.
wheel:
	@$(PYTHON) wheels/build.py --cuda $(CUDA)

# Builds the wheel for CPUs, and installs and tests it in an environment of its own, without a compiler.
test-wheel:
	@rm -rf build/wheels/tested
	@$(PYTHON) wheels/build.py --cuda OFF --out build/wheels/tested
	@$(PYTHON) wheels/try_installed.py build/wheels/tested/*.whl --torch "$(TORCH)" --pytest $(ARGS)

demo: $(VENV)/fastkd.stamp
	$(VENV)/bin/fastkd demo $(ARGS)

bench: $(VENV)/bench.stamp
	$(RUN) -m fastkd.bench.instruction_sets --quick
	$(RUN) -m fastkd.cli bench --suite --fresh --out build/bench --save bench/results $(ARGS)

# The README's tables and its picture: the forward KL from logits and from hidden states, with every peer but
# orda-kernel, whose plain torch code for a CPU would take half of the time.
bench-readme: $(VENV)/bench.stamp
	$(RUN) -m fastkd.cli bench --vocab 151936 --tokens 512 --heads 256/512 --divergence forward_kl \
	  --peer eager torch.compile F.linear_cross_entropy liger trl \
	  --allocator default kept --budget 0 --fresh --out build/bench-readme --save bench/results $(ARGS)
	$(RUN) -m bench.readme "$$(ls -t bench/results/*.json | head -n 1)"

# The site, in build/site (`python -m http.server -d build/site` shows it). Its environment is its own and has no
# torch. KaTeX, which renders the formulas while the site is built, is a package of npm. (--quiet would hide the
# warnings from --strict.)
DOCS ?= build/docs

$(DOCS)/docs.stamp: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python found: name one: make PYTHON=/path/to/python3"; exit 1; }
	@command -v npm >/dev/null || { echo "npm installs KaTeX, for the formulas, and is missing: apt install npm"; exit 1; }
	@echo "[setup] mkdocs and KaTeX in $(DOCS)"
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install -qq --disable-pip-version-check --no-input 'pip>=25.1'
	@$(DOCS)/bin/python -m pip install -qq --no-input --group docs
	@npm install --silent --no-fund --no-audit --no-save --prefix $(DOCS) katex@^0.19
	@touch $@

docs: $(DOCS)/docs.stamp
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
	@echo "The site is in build/site."

lint: $(VENV)/fastkd.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy fastkd bench hub/build.py
	$(VENV)/bin/clang-format --dry-run --Werror $$(find csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

include tests/gpu/gpu.mk

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f fastkd/_C*.so
