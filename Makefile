# Everything there is to do here. On a fresh Debian 12 or Ubuntu 24.04: sudo make test, sudo make demo.
.DEFAULT_GOAL := help
.PHONY: help setup build abi reference test unit property bpf e2e check bench kernels demo soak wheel deb clean
PYTHON := .venv/bin/python
OBJECT := build/lb.bpf.o
OBJECTS := $(OBJECT) build/via.bpf.o build/peek.bpf.o
CLANG ?= clang
BPF_FLAGS := -O2 -g -target bpf -mcpu=v3 -Wall -Wextra -I/usr/include/$(shell uname -m)-linux-gnu

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 20

setup: ## once per machine: distribution packages (as root) and .venv
	@scripts/setup

build: setup $(OBJECTS) build/table.so ## compile the packet programs, and the fast way to fill tables

abi: build ## write bpf/abi.py anew from the object
	$(PYTHON) -m bpf.abigen $(OBJECT) >build/abi.py && mv build/abi.py bpf/abi.py

reference: setup ## write docs/reference/ anew from the schemas and abi.h
	@$(PYTHON) scripts/reference.py

test: build ## all tests; as root, else most are skipped. PROFILE=deep for longer property runs
	@$(PYTHON) -m pytest $(ARGS)

unit property bpf e2e: build ## one kind of test
	@$(PYTHON) -m pytest tests/$@ $(ARGS)

check: build ## everything that needs no traffic: style, types, arrows, generated files, schemas, examples
	@scripts/check

bench: build ## nanoseconds per packet, as multiples of a trivial program (root). ARGS="--part health": of a health check; control: of passes; rate: packets a second
	@for tool in haproxy nft ipvsadm wrk; do command -v $$tool >/dev/null || exec scripts/setup bench; done
	@$(PYTHON) -m tests.bench $(ARGS)

kernels: build ## some of the tests under older kernels, in QEMU (root; slow). KERNELS="6.1 6.12", ARGS=tests/e2e/test_howto.py
	@scripts/setup kernels
	@$(PYTHON) -m tests.kernels $(if $(KERNELS),--kernels "$(KERNELS)") $(ARGS)

demo: build ## the whole story in a lab of namespaces, then on until Ctrl-C (root). ARGS=--fast, ARGS=--two-targets
	@PYTHONPATH=. $(PYTHON) examples/demo/demo.py $(ARGS)

wheel: build ## a wheel with the compiled program inside, in dist/
	@rm -rf build/lib build/bdist.* dist/*.whl
	@$(PYTHON) -m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir dist .

deb: wheel ## a Debian package, in dist/; needs no network
	@$(PYTHON) packaging/deb.py dist/*.whl dist

soak: build ## random troubles under load, each mishap explained or not (root). DURATION=30s, default 10m; SEED=
	@$(PYTHON) -m tests.soak --duration $(or $(DURATION),10m) $(if $(SEED),--seed $(SEED))

clean: ## what was built, not .venv
	rm -rf build dist *.egg-info

build/%.so: reconciler/%.c Makefile
	@echo "== compiling $@"
	@mkdir -p build
	@$(CLANG) -O2 -Wall -Wextra -fPIC -shared -s -ffreestanding -nostdlib $< -o $@.new && mv $@.new $@

build/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h) Makefile
	@echo "== compiling $@"
	@command -v $(CLANG) >/dev/null || { echo "no $(CLANG): sudo make setup, or apt-get install clang" >&2; exit 1; }
	@mkdir -p build
	@$(CLANG) $(BPF_FLAGS) -c $< -o $@.new && mv $@.new $@
