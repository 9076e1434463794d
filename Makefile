# Two commands: `make demo` runs the main job on real images, `make test` runs the tests. Both set everything up first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
UV := $(shell command -v uv || echo .uv/bin/uv)
export PATH := $(CURDIR)/.cache/bin:$(PATH)

.PHONY: help demo test lint bench lock setup tools clean

help:  ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: setup  ## from a bare checkout to an answer, on real images
	@scripts/demo.sh

test: setup tools  ## lint, types and the quick tests
	@$(MAKE) --no-print-directory lint
	@$(PY) -m pytest -n 2 --dist worksteal

lint: setup  ## ruff, mypy, the one-way import rule
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports --no-logo

bench: setup  ## every benchmark against its floor
	@$(PY) -m benchmarks check

lock: .uv/bin/uv  ## resolve requirements.lock anew (no addresses in it)
	@$(UV) pip compile -q --upgrade --no-emit-index-url --no-annotate --python-version 3.11 --all-extras \
	  --custom-compile-command "make lock" pyproject.toml -o requirements.lock

setup: .venv/.stamp

# A stale environment is one older than the lock; uv mends it in place in seconds.
.venv/.stamp: requirements.lock pyproject.toml | $(UV)
	@echo "setting up .venv from requirements.lock"
	@[ -x $(PY) ] || $(UV) venv -q --python 3.11 .venv
	@$(UV) pip sync -q --python $(PY) requirements.lock
	@$(UV) pip install -q --python $(PY) --no-deps -e .
	@touch $@

.uv/bin/uv:
	@python3 -m venv .uv && .uv/bin/pip install -q uv

tools: .cache/bin/minio /usr/bin/chromium  ## what the tests run against: MinIO, Chromium

# MinIO from PATH, else from the test cluster's binaries, else built from its Go module (three minutes, once).
.cache/bin/minio:
	@mkdir -p .cache/bin
	@if found=$$(PATH=$${PATH#$(CURDIR)/.cache/bin:} command -v minio); then ln -sf "$$found" $@; \
	elif [ -f ../shared/cluster/bin/minio.xz ]; then xz -dc ../shared/cluster/bin/minio.xz > $@.tmp && chmod +x $@.tmp && mv $@.tmp $@; \
	else echo "building MinIO (about three minutes, once)"; GOBIN=$(CURDIR)/.cache/bin go install github.com/minio/minio@latest; fi

/usr/bin/chromium:
	@command -v chromium >/dev/null || { echo "installing Chromium"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; }

clean:  ## remove the environment and caches (not downloaded data)
	@rm -rf .venv .uv .cache/bin .pytest_cache .mypy_cache .ruff_cache
