# What a person types. Everything lives in .venv; `make clean` forgets it and the runs.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
LLAMA_CPP := $(VENV)/share/llama.cpp
SOURCES := components pipelines tests helm
REGISTRY ?= chatmetrics
IMAGE_OPTIONS ?=
export PYTHONUNBUFFERED := 1

E2E_DIGESTS := .cache/e2e-digests.json
E2E_OPTIONS ?=

.PHONY: demo test lint bench setup images packages e2e lock clean

demo: setup  ## The whole loop on this machine: data in, a scored and served model out
	$(BIN)/chatmetrics run hotel-demo

test: setup  ## All tests but the whole demo, which is `make demo`
	$(BIN)/python -m pytest

lint: setup  ## Format, lint, types, and the table of rooms
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	mkdir -p .cache/mypy/chatmetrics
	ln -sfn ../../../components .cache/mypy/chatmetrics/components
	ln -sfn ../../../pipelines .cache/mypy/chatmetrics/pipelines
	$(BIN)/mypy -p chatmetrics.components -p chatmetrics.pipelines
	$(BIN)/lint-imports

bench: setup  ## Measurements, printed; nothing is asserted
	$(BIN)/python -m pytest tests/benchmarks -s -o python_files='bench_*.py'

setup: $(VENV)/ready  ## A virtual environment with locked packages, and llama.cpp's converter

$(VENV)/ready: requirements.lock images/convert/llama-cpp.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --quiet -e .
	rm -rf $(VENV)/download $(LLAMA_CPP) && mkdir -p $(LLAMA_CPP)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
		--require-hashes -r images/convert/llama-cpp.lock -d $(VENV)/download
	tar -xzf $(VENV)/download/*.tar.gz -C $(LLAMA_CPP) --strip-components 3 --wildcards \
		'*/vendor/llama.cpp/convert_hf_to_gguf.py' '*/vendor/llama.cpp/conversion/*' \
		'*/vendor/llama.cpp/gguf-py/*' '*/vendor/llama.cpp/LICENSE'
	rm -rf $(VENV)/download
	touch $@

images: setup  ## The steps' images, with docker, podman or buildah; `chatmetrics images build --help` has more
	$(BIN)/chatmetrics images build --registry $(REGISTRY) $(IMAGE_OPTIONS)

packages: setup  ## The recipes' compiled packages in pipelines/packages
	for recipe in pipelines/recipes/*.yaml; do \
		$(BIN)/chatmetrics compile $$recipe -o pipelines/packages/$$(basename $$recipe) || exit 1; \
	done

e2e: setup  ## The demo as pods, and doctor, on a real cluster; docs/cluster.md says which variables name it
	@test -n "$$KFP_ENDPOINT" || { echo "KFP_ENDPOINT is not set: which cluster? See docs/cluster.md" >&2; exit 2; }
	$(BIN)/python -m tests.e2e.images $(E2E_DIGESTS)
	CHATMETRICS_IMAGE_DIGESTS=$(E2E_DIGESTS) $(BIN)/python -m pytest tests/e2e $(E2E_OPTIONS)

lock: $(VENV)/ready  ## Renew requirements.lock and the images' locks from pyproject.toml
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --extra development \
		--no-emit-package chatmetrics --custom-compile-command 'make lock' -o requirements.lock pyproject.toml
	sh images/lock.sh $(CURDIR)/$(BIN)/uv

clean:
	rm -rf $(VENV) .cache runs
