# `make demo` and `make test` do all the set-up. Needs Python >= 3.10, make and git.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo-out

# Two processes of a thread each: threads of both on the same cores wait for one another, some of them six times as long.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-failed check format readme results results-quick triton contract userland clean

# A stamp per extra, renewed when what it was made from changes; so a second run starts at once.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[$*]"
	@touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/splitboard demo --out $(DEMO_OUT)

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

# The whole demo, large networks, diagnosing, a hundred thousand hostile streams, emulated boards.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

# What failed last time, one after the other.
test-failed: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --last-failed --last-failed-no-failures none

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Runs the demo and writes its real output into README.md.
readme: demo
	$(BIN)/python docs/write_readme.py $(DEMO_OUT)

# Everything in docs/results: hours on two cores; what was finished is kept in build/results and not done again.
results: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/methods/results.py

# The same at a size that only shows that it runs, into build/results-quick.
results-quick: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/methods/results.py --quick

# NVIDIA Triton from its wheel with its clients, in an environment of its own, for the tests marked triton.
triton: .venv-triton/.installed

.venv-triton/.installed: constraints.txt
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check nvidia-pytriton==0.7.0 "tritonclient[grpc,http]==2.73.0" onnxruntime==$$(sed -n 's/^onnxruntime==\([^;]*\).*/\1/p' constraints.txt)
	@touch $@

# TensorRT's real bindings of two major versions (their small runtime, which needs no GPU), and type stubs of a third: what
# the adapter calls must be in each. Apart from the environment, where they would pass for TensorRT.
LEAN := $(addprefix build/lean-,10.16.1.11 11.4.0.106)

contract: $(LEAN:%=%/.installed)
	@for lean in $(LEAN); do \
		PYTHONPATH=$$lean $(BIN)/python -m pytest -q tests/runtime_edge/test_tensorrt_contract.py || exit 1; \
	done

build/lean-%/.installed: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) tensorrt-stubs==10.13.0.35.1 tensorrt-lean-cu12-libs==$* tensorrt-lean-cu12-bindings==$*
	@touch $@

# Arm Debians for emulated boards, into the user's cache.
userland: $(VENV)/.installed-dev
	$(BIN)/python -m boards.emulated

clean:
	rm -rf $(VENV) .venv-triton build *.egg-info $(DEMO_OUT)
