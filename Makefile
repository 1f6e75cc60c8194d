# One command a job; `make help` lists them.  Every target can be interrupted and run again: what
# counts as done is marked by a stamp that is written last.
#
# Needs: Debian 12 (or alike) with make, git and Python 3.11 or newer; root or sudo for the Debian
# packages and for the lab, which makes network namespaces.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
# One shell a recipe: recipes are small programs, and the first failure ends them (-e).
.ONESHELL:
.DELETE_ON_ERROR:
.SUFFIXES:
.SILENT:
.DEFAULT_GOAL := help

VENV := .venv
BUILD := .build
BIN := $(VENV)/bin
# Written when every pinned package is in the environment; lives in it, so both go together.
INSTALLED := $(VENV)/.installed
# Extra words for pytest, for example: make test PYTEST_ARGS='-k wire -n auto'
PYTEST_ARGS ?=
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# The first Python that is new enough: `python3` may be an older one from a version manager.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo "$$p"; break; fi; done)

# qemu, busybox, gcc + libc: the lab's guests; qemu-system-common has the virtiofsd by which the kernel
# guest (tests/kernel_guest) sees this machine's files.  nftables, iproute2, ping: the data plane and probes.
# openssl: certificates of tests.  qemu-utils: images of disks.  frr: the lab's routers; its Python tools check a configuration.  bird2, gobgpd: routers and
# collectors of other makes; tshark decodes what goes over the wires.
DEBIAN_PACKAGES := \
	bird2 \
	busybox-static \
	frr \
	frr-pythontools \
	gcc \
	gobgpd \
	iproute2 \
	iputils-ping \
	libc6-dev \
	nftables \
	openssl \
	procps \
	python3-venv \
	qemu-system-common \
	qemu-system-x86 \
	qemu-utils \
	tshark \
	util-linux

.PHONY: help
help: ## list the targets
	awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

# --- setting up ---------------------------------------------------------------------------------

.PHONY: setup
setup: debian-packages $(INSTALLED) ## Debian packages that are missing, and .venv with pinned packages
	:

# apt is asked only when something is missing, so a machine that has all needs neither apt's lists
# nor the network.  The guests' kernel is not installed: the lab downloads its package and unpacks
# it, for which apt must only know it.  Its place is the cache of whoever runs the lab, as it is for
# an installed vmmobility (docs/lab.md): every clone finds it there, and `make clean` leaves it.
GUEST_KERNEL := linux-image-cloud-amd64
GUEST_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vmmobility/guest

.PHONY: debian-packages
debian-packages:
	missing=""
	for package in $(DEBIAN_PACKAGES); do
	  dpkg-query -W -f '$${Status}' "$$package" 2>/dev/null | grep -q ' installed$$' \
	    || missing+=" $$package"
	done
	known=yes
	compgen -G "$(GUEST_CACHE)/kernels/linux-image-*/vmlinuz" >/dev/null \
	  || apt-cache show $(GUEST_KERNEL) >/dev/null 2>&1 || known=no
	[ -n "$$missing" ] || [ $$known = no ] || exit 0
	apt="$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300"
	echo "updating the package lists"
	$$apt update
	[ -n "$$missing" ] || exit 0
	echo "installing Debian packages:$$missing"
	$$apt install --yes --no-install-recommends $$missing >/dev/null

# An environment without a working pip is what an interrupted `venv` leaves: it is made anew.
# -qq: errors only.
$(INSTALLED): constraints.txt pyproject.toml | debian-packages
	if ! $(BIN)/pip --version >/dev/null 2>&1; then
	  python="$(PYTHON)"
	  [ -n "$$python" ] || { echo "error: no Python 3.11 or newer (set PYTHON=...)" >&2; exit 1; }
	  echo "making $(VENV) with $$("$$python" --version)"
	  "$$python" -m venv --clear $(VENV)
	fi
	echo "installing the pinned packages into $(VENV)"
	$(BIN)/python -m pip install -qq --require-hashes -r constraints.txt
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	touch $@

# Resolved in an environment of its own, so that the tool's needs do not become ours.  With UPGRADE=1
# to the newest versions, else the versions on record are kept where they still fit.
.PHONY: constraints
constraints: ## resolve constraints.txt anew (UPGRADE=1: to the newest versions)
	[ -x $(BUILD)/pip-tools/bin/pip-compile ] || {
	  $(PYTHON) -m venv --clear $(BUILD)/pip-tools
	  # Resolves only; what it needs itself is no part of the project, hence not pinned.
	  $(BUILD)/pip-tools/bin/python -m pip install -qq pip-tools
	}
	$(BUILD)/pip-tools/bin/pip-compile --quiet --no-config --extra dev --generate-hashes \
	  --strip-extras --allow-unsafe --no-header --no-emit-options --no-emit-index-url \
	  --no-emit-trusted-host --no-emit-find-links --annotation-style line \
	  $(if $(UPGRADE),--upgrade) --output-file constraints.txt pyproject.toml
	# A download address would tie every user to this machine's way of fetching.
	if grep -nE '://|^ *--(index|extra-index|find-links|trusted)' constraints.txt; then
	  echo "error: constraints.txt names a download address" >&2
	  exit 1
	fi

# --- using it -----------------------------------------------------------------------------------

.PHONY: demo
demo: setup ## move a running guest between three racks and back; the report: .build/demo/report.html
	mkdir -p $(BUILD)/demo
	$(SUDO) $(BIN)/vmmob lab run hot-chain --html $(BUILD)/demo/report.html \
	  --json $(BUILD)/demo/report.json --raw $(BUILD)/demo/raw
	echo "open the report in a browser: file://$(CURDIR)/$(BUILD)/demo/report.html"

# --- checking it --------------------------------------------------------------------------------

# Namespaces need root.  The user's variables go along, so that caches stay theirs; under sudo pytest
# keeps no cache and Python no bytecode, for the tree would fill with files of root's.
PYTEST := $(BIN)/pytest
AS_ROOT :=
ifneq ($(SUDO),)
AS_ROOT := $(SUDO) env CI="$(CI)" HOME="$(HOME)" XDG_CACHE_HOME="$(XDG_CACHE_HOME)" \
	PYTHONDONTWRITEBYTECODE=1
PYTEST := $(AS_ROOT) $(BIN)/pytest -p no:cacheprovider
endif

# Two processes: tests of the lab and of the kernel guest follow each other in one; the drivers' and the
# daemons', and all that is pure, run in the other (tests/conftest.py).
SHARED := -n 2

# pytest comes last, so that its closing line is the last one.
.PHONY: test
test: setup ## lint, then every test but the slow campaigns
	$(MAKE) lint
	$(PYTEST) $(SHARED) -m "not slow" $(PYTEST_ARGS)

.PHONY: test-all
test-all: setup ## lint, then every test, the slow campaigns too
	$(MAKE) lint
	$(PYTEST) $(SHARED) $(PYTEST_ARGS)

# SEED: the first domain's; N messages in all.  The last line printed is the sum.
N ?=
SEED ?= 1
.PHONY: forge
forge: $(INSTALLED) ## forge, replay, damage N (1000000) messages against live engines: nothing may change
	$(BIN)/python -m tests.forge.campaign $(or $(N),1000000) --seed $(SEED)

# N inputs a decoder, or SECONDS for all of them; what breaks one lands in .build/fuzz, made small.
# GUIDED=1: under atheris, which follows coverage, SECONDS (60) for each.
TARGET ?=
SECONDS ?=
.PHONY: fuzz
fuzz: $(INSTALLED) ## the kept corpus and mutated inputs for every decoder (N= SECONDS= TARGET= GUIDED=1)
	if [ -z "$(GUIDED)" ]; then
	  $(BIN)/python -m tests.fuzz.campaign $(TARGET) --seed $(SEED) \
	    $(if $(N),--inputs $(N)) $(if $(SECONDS),--seconds $(SECONDS))
	  exit
	fi
	[ -d $(BUILD)/atheris ] || $(BIN)/python -m pip install -qq --no-deps --require-hashes \
	  --target $(BUILD)/atheris -r tests/fuzz/atheris.txt
	mkdir -p $(BUILD)/fuzz
	for target in $(or $(TARGET),$$($(BIN)/python -m tests.fuzz.campaign --list)); do
	  PYTHONPATH=$(BUILD)/atheris $(BIN)/python -m tests.fuzz.guided "$$target" \
	    $(or $(SECONDS),60) $(BUILD)/fuzz/guided
	done

# Schedules of the simulation (docs/design/safety.md); MUTANTS=1 hunts the engines' mutants instead.
SEEDS ?= 2000
START ?= 0

.PHONY: simulate
simulate: $(INSTALLED) ## simulate SEEDS=n schedules from START=k on (MUTANTS=1: hunt mutants of the engines)
	PYTHONPATH=src:. $(BIN)/python -m tests.simulation --seeds $(SEEDS) --start $(START) \
	  $(if $(MUTANTS),--mutants)

# Debian's own kernel under QEMU, with this clone and this machine's programs in it; CMD's output comes
# live, its exit status is make's.  For example: make in-guest CMD='ip link add type ipip'
CMD ?= uname -a
LIMIT ?= 3600
.PHONY: in-guest
in-guest: export CMD := $(CMD)
in-guest: setup ## run CMD='...' in Debian's own kernel, in LIMIT=3600 seconds
	$(AS_ROOT) $(BIN)/python -m tests.kernel_guest --limit $(LIMIT) sh -c "$$CMD"

# GUEST=1: in Debian's own kernel, which has tunnels of its own.  .build/tunnels.json has the figures.
ROUNDS ?= 5
.PHONY: bench-disks
bench-disks: setup ## a raw GiB over loopback: our driver (clear, TLS) and qemu-img convert, ROUNDS=5 in turn
	mkdir -p $(BUILD)
	$(BIN)/python tools/bench_disk_move.py --rounds $(ROUNDS) --tls --json $(BUILD)/disks.json

.PHONY: bench-tunnels
bench-tunnels: setup ## TCP by plain route, relay and kernel tunnel, ROUNDS=5 in turn (GUEST=1)
	mkdir -p $(BUILD)
	if [ -n "$(GUEST)" ]; then
	  $(AS_ROOT) $(BIN)/python -m tests.kernel_guest --limit $(LIMIT) --out $(BUILD) \
	    sh -c '$(BIN)/python -m tests.throughput --rounds $(ROUNDS) --json $$KERNEL_GUEST_OUT/tunnels.json'
	else
	  $(AS_ROOT) $(BIN)/python -m tests.throughput --rounds $(ROUNDS) --json $(BUILD)/tunnels.json
	fi

# All of them run, whatever the first one says: one run shows everything there is to mend.
.PHONY: lint
lint: $(INSTALLED) ## ruff, mypy --strict, the floors (import-linter), spelling
	failed=""
	check() { "$(BIN)/$$1" "$${@:2}" >$(BUILD)/lint.log 2>&1 \
	  || { cat $(BUILD)/lint.log; failed+=" $$1"; }; }
	mkdir -p $(BUILD)
	check ruff check .
	check ruff format --check .
	check mypy
	check lint-imports
	check codespell .
	[ -z "$$failed" ] || { echo "lint: failed:$$failed" >&2; exit 1; }
	echo "lint: ruff, mypy, import-linter and codespell are content"

.PHONY: format
format: $(INSTALLED) ## let ruff format the code and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The demo and the tests may have run under sudo and left files of root's.
.PHONY: clean
clean: ## remove .venv, .build and the tools' caches (the guests' kernel stays in the user's cache)
	rm -rf $(BUILD) 2>/dev/null || $(SUDO) rm -rf $(BUILD)
	rm -rf .hypothesis 2>/dev/null || $(SUDO) rm -rf .hypothesis
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
