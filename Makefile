# rankwise: `make compare` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PROGRAM := $(VENV)/.program
STAMP  := $(VENV)/.installed
OUT    ?= runs/compare

.DELETE_ON_ERROR:

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Some caches and hubs are asked for at import time; nothing here needs them.
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup compare test faults check quick-test slow-tests format lint types docs docs-serve clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# At most ten minutes on 2 cores with AVX512-BF16, installing included: so 3,000 of the 8,771 training rows, and 2 epochs.
compare: $(PROGRAM)  ## full fine-tuning, LoRA and adaptive rank on the embedded model and data: table, ranks, report.html
	@$(BIN)/rankwise compare --tasks movies --methods full lora adaptive --seeds 3 --epochs 2 --limit-train 3000 --out $(OUT)

# Coverage costs little where Python can count lines itself, from 3.12 on; before that it nearly doubles the tests' time.
COVERAGE = $(shell $(BIN)/python -c 'import sys; print("--cov --cov-report=term" * (sys.version_info >= (3, 12)))')

test: $(STAMP)  ## every test, a process a core, with coverage on Python 3.12 and later
	@COVERAGE_CORE=sysmon $(BIN)/python -m pytest -n auto --dist loadfile $(COVERAGE)

faults: $(STAMP)  ## 2,000 damaged inputs for every reader, 200 kills of a grid (an hour or two)
	@RANKWISE_FAULTS=2000 RANKWISE_KILLS=200 $(BIN)/python -m pytest -q -n auto tests/faults

check: format lint  ## the developer's quick loop: format, lint, types, fast tests
	@$(MAKE) --no-print-directory -j2 types quick-test

quick-test: $(STAMP)
	@$(BIN)/python -m pytest -q -x -n auto --dist loadfile -m "not slow"

slow-tests: $(STAMP)  ## measure which tests `make check` leaves out (tests/slow.txt)
	@: > tests/slow.txt
	@$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow" --durations=0 --durations-min=0.4 | tee /dev/stderr | \
	  sed -nE 's/^[0-9.]+s (call|setup|teardown) +(.*)$$/\2/p' | sort -u > tests/.slow.txt
	@mv tests/.slow.txt tests/slow.txt

setup: $(STAMP)  ## the environment alone

$(PROGRAM): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rankwise needs Python 3.11 or newer; $(PYTHON) is older. Say which: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing rankwise and its pinned dependencies into $(VENV) (a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(STAMP): $(PROGRAM)
	@echo "Installing what developers and optional features need ..."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[generation,peft,quantized,ray,tensorboard,tokens]' --group dev
	@touch $@

format: $(STAMP)
	@$(BIN)/ruff format $(if $(CI),--check,) .

lint: $(STAMP)
	@$(BIN)/ruff check $(if $(CI),,--fix) .
	@$(BIN)/codespell
	@$(BIN)/lint-imports --no-logo

types: $(STAMP)
	@$(BIN)/basedpyright --level error

# What the documentation site needs is installed when it is first asked for.
$(VENV)/.installed-docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	@touch $@

# What --help says, as a page.
OPTIONS := $(addprefix src/rankwise/,config.py inference_options.py runs/config.py bench/config.py)
docs/reference/commands.md: $(VENV)/.installed-docs $(wildcard src/rankwise/cli/*.py) $(OPTIONS)
	@$(BIN)/python -c 'from rankwise.cli.commands import app; print(app.generate_docs())' > $@

docs: docs/reference/commands.md  ## the documentation site in site/; a warning is an error
	@$(BIN)/zensical build --clean --strict

docs-serve: docs/reference/commands.md  ## the documentation site on http://localhost:8000, made again at every change
	@$(BIN)/zensical serve

clean:  ## removes the environment and what was built, keeps runs
	rm -rf $(VENV) dist site .cache .pytest_cache .ruff_cache
