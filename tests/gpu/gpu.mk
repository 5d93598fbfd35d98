# The Makefile includes these targets, which are for a machine with a GPU and no network; README.md beside this file says
# what each one does. They use the system's Python and build into the source tree. `make gpu-deps`, on a machine with a
# network, fills build/gpu-deps with the small packages that the GPU machine may lack, for Python GPU_PYTHON_VERSION.
# The output of each step goes to the screen and to $(GPU_LOGS).
.PHONY: gpu gpu-first gpu-check gpu-build gpu-test gpu-sanitize gpu-bench gpu-deps

GPU_PYTHON ?= python3
GPU_PYTHON_VERSION ?= 3.12
GPU_JOBS ?= 8
GPU_LOGS ?= build/gpu-logs
GPU_DEPS := build/gpu-deps
GPU_RUN := PYTHONPATH=$(GPU_DEPS):$$PYTHONPATH $(GPU_PYTHON)
GPU_PIP := $(PYTHON) -m pip install -qq --no-compile --upgrade --target $(GPU_DEPS) --python-version $(GPU_PYTHON_VERSION) \
  --only-binary=:all:

# $(call logged,NAME,COMMAND): runs COMMAND, also writes its output and exit status to files, and exits with that status.
logged = mkdir -p $(GPU_LOGS); { { $(2); }; echo $$? >$(GPU_LOGS)/$(1).status; } 2>&1 | tee $(GPU_LOGS)/$(1).log; \
  exit $$(cat $(GPU_LOGS)/$(1).status)

gpu-deps:
	@rm -rf $(GPU_DEPS)
	$(GPU_PIP) pybind11 pytest pytest-xdist
	@echo "The benchmarks' peers, without what they need in turn:"
	@for peer in liger-kernel trl accelerate orda-kernel; do \
	  $(GPU_PIP) --no-deps $$peer || echo "without $$peer: the table will do without it"; done

# If a step fails, the later ones still run, unless the step is the build.
gpu: gpu-build
	@worst=0; for step in gpu-test gpu-sanitize gpu-bench; do \
	  echo "--- make $$step"; $(MAKE) --no-print-directory $$step || worst=1; done; exit $$worst

# What to measure first, in at most twelve minutes without the build; a second run continues where the first one stopped.
gpu-first: gpu-build
	@$(call logged,first,$(GPU_RUN) tests/gpu/first.py --out $(GPU_LOGS)/first $(ARGS))

gpu-check:
	@$(GPU_RUN) -c "import torch; assert torch.cuda.is_available(), 'torch sees no GPU'"
	@for module in pybind11 pytest xdist triton; do \
	  $(GPU_RUN) -c "import $$module" || { echo "$(GPU_PYTHON) lacks $$module: run 'make gpu-deps' where there is a network" \
	    "and bring build/gpu-deps along"; exit 1; }; done

gpu-build: gpu-check
	@for tool in cmake ninja nvcc; do command -v $$tool >/dev/null || { echo "$$tool is not on the PATH"; exit 1; }; done
	@$(call logged,build,cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTKD_CUDA=ON \
	  -DPython_EXECUTABLE=$$(command -v $(GPU_PYTHON)) -Dpybind11_DIR=$$($(GPU_RUN) -m pybind11 --cmakedir) && \
	  cmake --build build/gpu && cmake --install build/gpu --prefix . && $(GPU_RUN) -m fastkd.cli env)

# Only the files with GPU cases: the others may import packages that this machine lacks. Many processes run, since Triton
# compiles hundreds of kernels; the tests that need gigabytes share one process.
GPU_TESTS = $(shell grep -lrE '\b(target: Target|place: Target|mark\.gpu)\b' --include='test_*.py' tests)

gpu-test: gpu-check
	@$(call logged,test,CUBLAS_WORKSPACE_CONFIG=:4096:8 $(GPU_RUN) -m pytest $(GPU_TESTS) -m gpu --tb=short -q \
	  -n $(GPU_JOBS) --dist loadgroup --durations=20 $(ARGS))

gpu-sanitize: gpu-check
	@$(call logged,sanitize,$(GPU_RUN) tests/gpu/sanitize.py --logs $(GPU_LOGS) $(ARGS))

# A second run continues where the first one stopped.
gpu-bench: gpu-check
	@$(call logged,bench,$(GPU_RUN) -m fastkd.cli bench --device cuda --out $(GPU_LOGS)/bench $(ARGS))
