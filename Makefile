# `make help` lists the targets. Everything is installed in .venv; `make clean` removes it and the runs.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
LLAMA_CPP := $(VENV)/share/llama.cpp
SOURCES := components pipelines tests helm images
DEMO_OPTIONS ?=
REGISTRY ?= chatmetrics
IMAGE_OPTIONS ?=
# Tests of one file share a worker, because they share trained models and servers.
TWO_WORKERS := -n 2 --dist loadfile
export PYTHONUNBUFFERED := 1

# Test files that take longer than ten seconds each, because they start processes, servers or training.
NOT_FAST := tests/e2e tests/base_model/test_adapter_targets.py tests/base_model/test_check.py \
	tests/base_model/test_from_gguf.py tests/base_model/test_package.py tests/convert \
	tests/deploy/test_helm.py tests/distill/test_kills.py \
	tests/distill/test_sampling.py tests/pipelines/test_cli.py tests/pipelines/test_doctor.py \
	tests/pipelines/test_estimate.py tests/pipelines/test_gguf_base.py tests/pipelines/test_package.py tests/preprocess/test_hotel.py \
	tests/nl2sql/test_dialects.py tests/nl2sql/test_server_databases.py tests/preprocess/test_addresses.py \
	tests/serve/test_server_databases.py \
	tests/serve/test_clients.py tests/serve/test_page.py tests/serve/test_pod.py tests/storage/test_manifest.py tests/storage/test_s3_store.py \
	tests/train/test_early_stopping.py tests/train/test_flex_attention.py tests/train/test_gpu_check.py \
	tests/train/test_half_precision.py tests/train/test_kills.py tests/train/test_memory.py \
	tests/train/test_model_families.py tests/train/test_out_of_memory.py tests/train/test_processes.py \
	tests/train/test_quantized_base.py tests/train/test_timed_checkpoints.py tests/train/test_train.py \
	tests/train/test_trackers.py tests/train/test_upload.py tests/train/test_watching.py

E2E_DIGESTS := .cache/e2e-digests.json
E2E_OPTIONS ?=

SOAK_OPTIONS ?=
GPU_CHECK_OPTIONS ?=
BUNDLE_OPTIONS ?=

.PHONY: help demo test test-all test-fast lint format bench soak clients clients-lock gpu-check gpu-check-bundle setup images \
	packages e2e e2e-images lock clean

help:  ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*  ## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

demo: setup  ## The whole pipeline on this machine: data in, a scored and served model out
	$(BIN)/chatmetrics run hotel-demo $(DEMO_OPTIONS)

test: setup  ## All tests but the exhaustive ones and those that need a cluster
	$(BIN)/python -m pytest $(TWO_WORKERS) -m "not exhaustive"

test-all: setup  ## All tests but those that need a cluster; the exhaustive ones take another 25 minutes
	$(BIN)/python -m pytest $(TWO_WORKERS)

test-fast: setup  ## The quick tests, in under two minutes on two cores
	$(BIN)/python -m pytest $(TWO_WORKERS) -m "not slow and not exhaustive" $(NOT_FAST:%=--ignore=%)

lint: setup  ## Check format, code, types, imports between packages, and language
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	mkdir -p .cache/mypy/chatmetrics
	ln -sfn ../../../components .cache/mypy/chatmetrics/components
	ln -sfn ../../../pipelines .cache/mypy/chatmetrics/pipelines
	$(BIN)/mypy -p chatmetrics.components -p chatmetrics.pipelines
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_language.py

format: setup  ## Format the code and apply the fixes that ruff considers safe
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: setup  ## Print measurements; nothing is asserted
	$(BIN)/python -m pytest tests/benchmarks -s -o python_files='bench_*.py'

soak: setup  ## Load pods on this machine for ten minutes and disturb them; see docs/soak.md
	$(BIN)/python -m tests.soak $(SOAK_OPTIONS)

clients: setup  ## Run the clients of docs/clients.md against a pod, record their requests, and write the table
	$(BIN)/python -m tests.clients

clients-lock: setup  ## Update the locked versions of these clients
	for file in tests/clients/python/*.in; do \
		$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes \
			--custom-compile-command 'make clients-lock' -o $${file%.in}.lock $$file || exit 1; \
	done
	cd tests/clients/javascript && npm install --package-lock-only --ignore-scripts --save-exact --no-audit --no-fund \
		$$(node -p 'Object.keys(require("./package.json").dependencies).map((name) => name + "@latest").join(" ")')
	cd tests/clients/go && go get -u ./... && go mod tidy

# Without `setup`, because a machine with a GPU may have no package index: there `python3` is the one that has torch.
gpu-check:  ## Check and measure on a GPU what tests cannot, in under ten minutes; see docs/training.md
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) tests/gpu_check $(GPU_CHECK_OPTIONS)

gpu-check-bundle: setup  ## Collect wheels for gpu-check on a machine without a package index
	$(BIN)/python -m tests.gpu_check.bundle $(BUNDLE_OPTIONS)

setup: $(VENV)/ready  ## Create .venv with the locked packages and llama.cpp's converter

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

images: setup  ## Build the steps' images with docker, podman or buildah; see docs/images.md
	$(BIN)/chatmetrics images build --registry $(REGISTRY) $(IMAGE_OPTIONS)

packages: setup  ## Compile the recipes to pipelines/packages
	for recipe in pipelines/recipes/*.yaml; do \
		$(BIN)/chatmetrics compile $$recipe -o pipelines/packages/$$(basename $$recipe) || exit 1; \
	done

e2e: setup e2e-images  ## Tests on a real cluster; docs/cluster.md says which variables name it
	@test -n "$$KFP_ENDPOINT" || { echo "KFP_ENDPOINT is not set: which cluster? See docs/cluster.md" >&2; exit 2; }
	CHATMETRICS_IMAGE_DIGESTS=$(E2E_DIGESTS) $(BIN)/python -m pytest $(TWO_WORKERS) --no-loadscope-reorder \
		tests/e2e $(E2E_OPTIONS)

e2e-images: setup  ## Build the images for `make e2e`, and push or load them, if the code changed since the last time
	$(BIN)/python -m tests.e2e.images $(E2E_DIGESTS)

lock: $(VENV)/ready  ## Update requirements.lock and the images' locks from pyproject.toml
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --extra development \
		--no-emit-package chatmetrics --custom-compile-command 'make lock' -o requirements.lock pyproject.toml
	sh images/lock.sh $(CURDIR)/$(BIN)/uv

clean:  ## Remove .venv, caches and runs
	rm -rf $(VENV) .cache runs
