# Needs Python, cargo, make and a C compiler (the linker); everything else goes into .venv and target.

PYTHON ?= python3
# Of `make bench`.
THREADS ?= 2
# Of `make fuzz`.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=
# Of `make wheel`.
ARCH ?= $(shell uname -m)

# Each said once, in the manifests.
PYTHON_LEAST := $(shell sed -n 's/^requires-python = ">=3\.\([0-9]*\)".*/\1/p' pyproject.toml)
RUST_LEAST := $(shell sed -n 's/^rust-version = "1\.\([0-9]*\)".*/\1/p' Cargo.toml)

BIN := .venv/bin
TOOLS := .venv/.tools
GROUPS_INSTALLED := .venv/.groups
CORE := python/ravine/_core.abi3.so

# Where `make install-c` puts the C library; DESTDIR goes before, for packages.
PREFIX ?= /usr/local
DESTDIR ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
# Programs ask for it by the part of the version that must not change: 0.x while it is 0.
ABI := $(shell echo $(VERSION) | sed 's/^\(0\.[0-9]*\|[1-9][0-9]*\).*/\1/')
# A folder of its own: maturin builds the same crate into target, with Python in it.
C := target/c/release
C_LIBRARY := $(C)/libravine.a
ifeq ($(shell uname),Linux)
C_NAME := -C link-arg=-Wl,-soname,libravine.so.$(ABI)
endif

.PHONY: help demo test test-rust test-python test-slow test-adapters test-gpu test-arm fuzz lint format build c-library install-c gallery bench bench-kernels bench-gpu docs wheel test-wheel clean check-tools
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build  ## train on handwritten digits with four optimizers: a table and learning_curves.png
	@# One BLAS thread: for matrices this small two gain nothing, and on a busy machine they wait for each other.
	OPENBLAS_NUM_THREADS=1 $(BIN)/python examples/digits.py

test: | check-tools  ## everything below that can fail: lint, test-rust, test-python
	@# Side by side, because each keeps one processor busy for minutes.
	$(MAKE) --jobs=2 $(CORE) $(C_LIBRARY)
	$(MAKE) lint test-rust test-python

test-rust: | check-tools  ## the core's tests; needs no Python package
	cargo test

# Not the files with most tests first: the longest have few.
test-python: $(CORE) $(C_LIBRARY) $(GROUPS_INSTALLED)  ## the package's tests, with the examples of README and docstrings
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(CORE) $(GROUPS_INSTALLED)  ## what takes many gigabytes, a step over more than 2^31 elements, or minutes: damaged and interrupted checkpoints, storms of signals, CUDA kernels under sanitizers
	RAVINE_SLOW=1 $(BIN)/python -m pytest tests/test_faults.py tests/test_cuda_faults.py tests/test_checkpoint.py \
		tests/test_cuda_sanitized.py tests/test_interrupts.py -k "fault_20 or fault_22 or fault_24 or fault_32 or kernels_are_clean" --timeout 1800

fuzz: $(CORE) $(GROUPS_INSTALLED)  ## inputs at random for arrays, files and C, with the core's assertions on: FUZZ_SECONDS (60) for each target; a line each in benches/record/fuzz.md
	CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo rustc --quiet --lib --crate-type cdylib --target-dir target/fuzz
	OPENBLAS_NUM_THREADS=1 FUZZ_LIBRARY=target/fuzz/debug/libravine.so nice -n 19 \
		$(BIN)/python -m tests.fuzz $(FUZZ_SECONDS) $(FUZZ_TARGETS) --record benches/record/fuzz.md

test-adapters: $(CORE) $(GROUPS_INSTALLED) .venv/.adapters  ## with torch, JAX, optax, autograd and spaCy, which it installs (on Linux 2.5 GB to fetch, 6 GB on disk): what works with them
	$(BIN)/python -m pytest -rs $(addprefix tests/test_,$(addsuffix .py,torch torch_classes torch_inputs thinc foreign convert_runs examples docs))

test-gpu: $(CORE) $(GROUPS_INSTALLED) .venv/.gpu  ## with an NVIDIA GPU: the tests of kernels on it, graphs and streams too, and compute-sanitizer
	RAVINE_GPU=1 $(BIN)/python -m pytest $(wildcard tests/test_cuda_*.py) --timeout 3600

lint: $(CORE) $(GROUPS_INSTALLED)  ## rustfmt, clippy, ruff, mypy, and the stubs against the compiled module
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 \
		|| { echo "make: rustfmt or clippy is missing: rustup component add rustfmt clippy"; exit 1; }
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features python -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@# The one exception: __all__, which pyo3 makes of the names that stubtest compares one by one.
	echo 'ravine\._core\.__all__' | $(BIN)/python -m mypy.stubtest ravine._core --allowlist /dev/stdin

format: $(GROUPS_INSTALLED)  ## rewrite Rust and Python in the house's format
	cargo fmt
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

build: $(CORE)  ## .venv with the package, editable and optimised, and what the example needs

c-library: $(C_LIBRARY)  ## target/c/release/libravine.so and .a, for C and all that can call it; without Python

install-c: $(C_LIBRARY)  ## on Linux: the C library, its header and its pkg-config file, under PREFIX (/usr/local)
	install -d "$(DESTDIR)$(PREFIX)/lib/pkgconfig" "$(DESTDIR)$(PREFIX)/include"
	install -m 644 $(C)/libravine.a "$(DESTDIR)$(PREFIX)/lib"
	install -m 755 $(C)/libravine.so "$(DESTDIR)$(PREFIX)/lib/libravine.so.$(VERSION)"
	ln -sf libravine.so.$(VERSION) "$(DESTDIR)$(PREFIX)/lib/libravine.so.$(ABI)"
	ln -sf libravine.so.$(VERSION) "$(DESTDIR)$(PREFIX)/lib/libravine.so"
	install -m 644 rust/include/ravine.h "$(DESTDIR)$(PREFIX)/include"
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' -e "s|@STATIC@|$$(cat $(C)/native-static-libs)|" \
		rust/include/ravine.pc.in > "$(DESTDIR)$(PREFIX)/lib/pkgconfig/ravine.pc"

gallery: build  ## docs/gallery/: the pictures of docs/gallery.md, from examples/gallery/
	for script in examples/gallery/*.py; do \
		(cd docs/gallery && MPLBACKEND=agg OPENBLAS_NUM_THREADS=1 $(CURDIR)/$(BIN)/python ../../$$script) || exit 1; done

bench: bench-kernels  ## every record, table and picture of docs/performance.md, beside the peers that are installed (THREADS=2)
	$(BIN)/python -m ravine bench --threads $(THREADS) --output benches/record/adamw-$(THREADS)-threads.md
	MPLBACKEND=agg $(BIN)/python benches/draw_adamw.py benches/record/adamw-$(THREADS)-threads.md --picture docs/performance.png --readme README.md
	$(BIN)/python benches/bench_limits.py --threads $(THREADS) --output benches/record/limits.md
	if $(BIN)/python -c 'import torch' 2>/dev/null; then \
		$(BIN)/python benches/bench_rules.py --threads $(THREADS) --output benches/record/rules-$(THREADS)-threads.md; fi
	$(BIN)/python benches/bench_norm.py --threads $(THREADS) --output benches/record/norm-$(THREADS)-threads.md
	$(BIN)/python -m benches.bench_minimize --output benches/record/minimize.md
	$(BIN)/python benches/bench_onebit.py --threads $(THREADS) --output benches/record/onebit.md
	$(BIN)/python benches/bench_decay.py --output benches/record/decay.md
	$(BIN)/python benches/bench_sparse.py --threads $(THREADS) --output benches/record/sparse.md
	MPLBACKEND=agg OPENBLAS_NUM_THREADS=1 $(BIN)/python benches/bench_states.py --threads $(THREADS) --output benches/record/states.md --picture docs/states.png

bench-kernels: build  ## the kernels alone: ns per element of each rule, dtype and instruction set
	{ echo "# The kernels alone, 1 thread"; echo; echo "* Date: $$(date -u '+%Y-%m-%d %H:%M') UTC"; \
		echo "* Machine: $$(uname -sm), $$(sed -n 's/^model name.*: //p' /proc/cpuinfo 2>/dev/null | head -1); $$(rustc --version)"; \
		echo "* Command: \`cargo bench\`; every case gave the bits of the baseline instruction set before it was timed"; \
		echo "* 16 384 elements: in cache; 4 194 304: from memory. GB/s counts the gradient read, parameter and states read and written"; \
		echo; echo '```'; cargo bench --quiet; echo '```'; } > benches/record/kernels.md

bench-gpu: $(CORE) .venv/.gpu  ## with an NVIDIA GPU: steps and batch norm against its copy, and torch if installed: a record
	$(BIN)/python benches/bench_cuda.py --output benches/record/cuda.md

docs: $(CORE) $(GROUPS_INSTALLED) .venv/.docs  ## site/: the documentation as pages; a broken link or a public name without an entry is an error
	@# Not --quiet: warnings that are not shown are not counted, either.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html, or: $(BIN)/python -m http.server --directory site"

wheel: $(TOOLS)  ## dist/: a wheel for all Pythons (Linux: glibc 2.17; ARCH="x86_64 aarch64" for both), and the source distribution
	rm -rf dist
	$(BIN)/python -m pip install --quiet --group wheel
ifeq ($(shell uname -s),Linux)
	@# zig links against any glibc, and finds itself on the path. Another architecture: rustup target add $$arch-unknown-linux-gnu
	install -D -m 644 rust/include/ravine.h python/ravine/include/ravine.h
	for arch in $(ARCH); do PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/maturin build --release --out dist \
		--zig --target $$arch-unknown-linux-gnu --compatibility manylinux2014 || exit 1; done
	rm -r python/ravine/include
	for wheel in dist/*.whl; do $(BIN)/python rust/python/weaken.py $$wheel || exit 1; done
	for wheel in dist/*.whl; do $(BIN)/auditwheel show $$wheel || exit 1; done
else
	$(BIN)/maturin build --release --out dist
endif
	$(BIN)/maturin sdist --out dist

test-wheel: wheel  ## each of them in an empty environment with NumPy alone, then the tests from there
	$(BIN)/python tests/check_distribution.py dist/*_$(shell uname -m).whl
	$(BIN)/python tests/check_distribution.py dist/*.tar.gz

test-arm:  ## the core's tests for 64-bit Arm (NEON), by emulation
	@for tool in aarch64-linux-gnu-gcc qemu-aarch64; do command -v $$tool >/dev/null || \
		{ echo "make: $$tool is missing (Debian, Ubuntu: apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)"; exit 1; }; done
	rustup target add aarch64-unknown-linux-gnu
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
		cargo test --target aarch64-unknown-linux-gnu

clean:  ## remove all that make made
	rm -rf .venv target dist site $(CORE) learning_curves.png .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The rest are files, made once and again when what they rest on changes.

$(TOOLS): pyproject.toml | check-tools
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' $$($(BIN)/python -c \
		'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	touch $@

$(GROUPS_INSTALLED): $(TOOLS)
	$(BIN)/python -m pip install --quiet --group test --group lint
	touch $@

.venv/.adapters: $(TOOLS)
	$(BIN)/python -m pip install --quiet --group adapters
	touch $@

.venv/.docs: $(TOOLS)
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

.venv/.gpu: $(CORE)
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c \
		'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cuda"])')
	touch $@

# Python files are not listed: an editable install reads them where they are.
$(CORE): $(TOOLS) Cargo.toml Cargo.lock $(shell find rust -name '*.rs')
	env -u CONDA_PREFIX VIRTUAL_ENV="$(CURDIR)/.venv" $(BIN)/maturin develop --release --extras demo
	touch $@

# What the static library needs of the system is what rustc says it does. The names of its kernels say their types (v0):
# tests/test_instructions.py asks.
$(C_LIBRARY): Cargo.toml Cargo.lock $(shell find rust -name '*.rs')
	cargo rustc --quiet --release --lib --crate-type cdylib,staticlib --target-dir target/c -- \
		--print native-static-libs="$(CURDIR)/$(C)/native-static-libs" \
		$(C_NAME) -C debuginfo=0 -C strip=debuginfo -C symbol-mangling-version=v0
	ln -sf libravine.so $(C)/libravine.so.$(ABI)
	touch $@

check-tools:
	@missing=""; lacks() { echo "make: $$1"; missing=yes; }; \
	if ! command -v $(PYTHON) >/dev/null; then \
		lacks "$(PYTHON) is missing: install Python 3.$(PYTHON_LEAST) or newer, or name yours: PYTHON=/path/to/python3"; \
	elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, $(PYTHON_LEAST)))'; then \
		lacks "$$($(PYTHON) --version) is too old: install 3.$(PYTHON_LEAST) or newer, or name yours: PYTHON=/path/to/python3"; \
	elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		lacks "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)"; \
	fi; \
	if ! command -v cargo >/dev/null; then \
		lacks "cargo is missing: install Rust 1.$(RUST_LEAST) or newer with rustup"; \
	elif ! cargo --version | awk '{ split($$2, v, "."); exit !(v[1] > 1 || v[2] >= $(RUST_LEAST)) }'; then \
		lacks "$$(cargo --version) is too old: 1.$(RUST_LEAST) or newer (rustup update)"; \
	fi; \
	if ! command -v cc >/dev/null; then \
		lacks "cc is missing: install a C compiler, which Rust links with (Debian, Ubuntu: apt install gcc libc6-dev; macOS: xcode-select --install)"; \
	fi; \
	if [ "$(MAKECMDGOALS)" != demo ] && ! command -v g++ >/dev/null; then \
		lacks "g++ is missing: install a C++ compiler, which runs the CUDA kernels in the tests (Debian, Ubuntu: apt install g++)"; \
	fi; \
	test -z "$$missing"
