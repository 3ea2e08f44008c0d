# make demo | test | chaos | fuzz | simulate | parity | rehearse | lint | sdk-alone | bench | proto | setup | clean. Everything installs into .venv by itself.
PYTHON ?= python3
PYTEST ?=
CHAOS ?=
MINUTES ?= 10
VENV := .venv
EXPORT := $(VENV)-export
CUDA := $(VENV)-cuda
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROTOS := $(sort $(wildcard proto/recurra/v1/*.proto))
TRITONS := $(sort $(wildcard proto/inference/*.proto))
STUBS := proto

# Paths of the .proto files that packages bring, and one compiler call: $(call protoc,options,files)
packages = $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
protoc = $(BIN)/python -m grpc_tools.protoc -I proto -I "$(packages)" --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc $(1) $(2)
# The stubs of proto/inference go to recurra.inference, and into a pool of their own: see there.
stubs = $(call protoc,--python_out="$(1)" --grpc_python_out="$(1)" --mypy_out=quiet:"$(1)" --mypy_grpc_out=quiet:"$(1)",$(PROTOS)) && \
	$(call protoc,--python_out="$(1)/recurra" --mypy_out=quiet:"$(1)/recurra",$(TRITONS)) && \
	sed -i 's/_descriptor_pool.Default()/_descriptor_pool.DescriptorPool()/' "$(1)"/recurra/inference/*_pb2.py

.PHONY: setup export-setup cuda-setup parity rehearse demo test chaos fuzz simulate sdk-alone lint lint-python lint-proto proto bench clean
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Recurra needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "setup: installing into $(VENV) (a minute or two the first time)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "setup: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
	@echo "setup: done"

demo: setup
	@$(BIN)/python -m bench.demo

# A file's tests stay together: they share its servers.
test: setup
	$(BIN)/pytest -n auto --dist loadfile $(PYTEST)

# Real processes that are killed, suspended, cut off and filled up for a minute or two, and every answer checked. What it
# finds is in tests/chaos/results.json. CHAOS='--seed 7 --seconds 120'
chaos: setup
	$(BIN)/python -m tests.chaos $(CHAOS)

# The fuzz of `make test` again and again, with other examples each time.
fuzz: setup
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

# Seeds of the simulated world: SEEDS=20000, FROM=5000, or one with its trace, SEED=42. See docs/parts/simulate.md.
SEEDS ?= 2000
FROM ?= 0
simulate: setup
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--start $(FROM) --seeds $(SEEDS))

# The frameworks have an environment of their own: they take 3 GB.
export-setup: $(EXPORT)/.ready

$(EXPORT)/.ready: $(READY)
	@echo "export-setup: installing Keras and PyTorch into $(EXPORT) (some minutes the first time)"
	@test -x $(EXPORT)/bin/pip || $(PYTHON) -m venv $(EXPORT)
	@$(EXPORT)/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test,export]'
	@touch $@

# The exporters' tests; then every layer built in its framework, served, and compared with it. Writes docs/models.md.
parity: export-setup
	$(EXPORT)/bin/pytest tests/models/export
	$(EXPORT)/bin/python -m tests.parity

# CUDA's headers lie beside the packages: were the libraries that come with them among these, they would be loaded.
cuda-setup: $(CUDA)/.ready

$(CUDA)/.ready: pyproject.toml constraints.txt
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "cuda-setup: ONNX Runtime has its CUDA provider on PyPI for Linux on x86-64 alone" >&2; exit 1; }
	@command -v gcc >/dev/null && command -v nm >/dev/null || { echo "cuda-setup: on Debian, apt-get install gcc libc6-dev" >&2; exit 1; }
	@echo "cuda-setup: installing ONNX Runtime for CUDA into $(CUDA) (a minute or two the first time)"
	@test -x $(CUDA)/bin/pip || $(PYTHON) -m venv $(CUDA)
	@$(CUDA)/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[server]' pytest pytest-asyncio hypothesis
	@$(CUDA)/bin/pip install -qq --disable-pip-version-check -c constraints.txt --upgrade --no-deps --target $(CUDA)/headers \
		nvidia-cuda-runtime nvidia-cuda-crt
	@touch $@

# The CUDA path without a GPU: the real CUDA provider on libraries that compute nothing and write down each call.
rehearse: cuda-setup
	$(CUDA)/bin/pytest tests/rehearsal

# The SDK as its users install it, with the newest protobuf and grpcio that it admits; the tests have protobuf 6.
sdk-alone: setup
	@echo "sdk-alone: installing recurra and nothing else into $(VENV)-sdk"
	@$(PYTHON) -m venv --clear $(VENV)-sdk && $(VENV)-sdk/bin/pip install -qq --disable-pip-version-check --upgrade .
	$(BIN)/python -m tests.sdk_alone $(abspath $(VENV)-sdk)/bin/python

# Ten minutes; what it finds is in bench/results.json, and `python -m bench.report` puts it into docs/performance.md.
bench: setup
	$(BIN)/python -m bench
	$(BIN)/python -m bench.profile
	$(BIN)/python -m bench.sizes
	$(BIN)/python -m bench.prepare

lint: lint-python lint-proto

lint-python: setup
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# buf's rules, and whether `make proto` would change anything.
lint-proto: setup
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	echo "buf lint" && $(call protoc,--include_imports --descriptor_set_out="$$scratch/image.binpb",$(PROTOS) $(TRITONS)) && \
	(cd proto && $(abspath $(BIN))/buf lint "$$scratch/image.binpb" --path recurra/v1 --path inference) && \
	echo "stubs are what the .proto files say" && mkdir -p "$$scratch/stubs/recurra" && $(call stubs,$$scratch/stubs) && \
	for stub in "$$scratch"/stubs/recurra/*/*; do diff -u "proto/$${stub#"$$scratch/stubs/"}" "$$stub" || { echo "run make proto" >&2; exit 1; }; done

proto: setup
	$(call stubs,$(STUBS))

clean:
	rm -rf $(VENV) $(VENV)-sdk $(EXPORT) $(CUDA) out dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
