# One environment in .venv, made once and remade when the pins change.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The index of CPU builds of torch, asked only where the ordinary indexes have no +cpu build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Another torch than the pinned one, for example: make study TORCH='torch==2.10.0'
TORCH ?=

# The benchmark's peers live apart, each in build/peers/NAME, from the pins in benchmarks/peers/NAME.txt.
PEERS := kronfluence curvlinops dattri pydvl
# A part of the comparison, for example: make bench ONLY=W1, or BENCH='--rounds 5 --fresh'
ONLY ?=
BENCH ?=

BANKS := wine diabetes
SHIPPED := src/curvfluence/banks/shipped

# More for the tests, for example: make test PYTEST='--durations=25 -k golden'
PYTEST ?=

.PHONY: study test test-slow test-models test-vision test-lowest lint format docs docs-serve banks torture mutation scale bench bench-peers clean

study: .venv/run
	$(BIN)/curvfluence study digits

# A test runs on one thread: as many processes as cores; tests that share fixtures in one of them.
test: .venv/test
	$(BIN)/python -m pytest -n auto --dist loadgroup $(PYTEST)

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow $(PYTEST)

# Models of Hugging Face as they are, of random weights: nothing is downloaded but packages. In an
# environment of their own: a torchvision of another build than torch, which the tests' has, breaks them.
test-models: build/models/made
	HF_HUB_OFFLINE=1 build/models/bin/python -m pytest -n auto tests/test_models.py $(PYTEST)

build/models/made: constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt torch || \
	$(@D)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt \
	  --extra-index-url $(TORCH_INDEX) torch
	$(@D)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt -e .[models]
	touch $@

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Image models as they are. torchvision must be of the same build as torch: where there is no CPU build of
# both, name a pair, for example: make test-vision VISION='torch==2.14.1 torchvision==0.29.1'
test-vision: build/vision/made
	$(BIN_VISION)/python -m pytest -n auto tests/test_vision.py $(PYTEST)

VISION ?=
BIN_VISION := build/vision/bin

build/vision/made: constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	grep -vE '^(torch|torchvision)==' constraints.txt > $(@D)/constraints.txt
	$(BIN_VISION)/python -m pip --disable-pip-version-check install -q \
	  $(or $(VISION),-c constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	$(BIN_VISION)/python -m pip --disable-pip-version-check install -q -c $(@D)/constraints.txt -e .[vision]
	touch $@

# The lowest releases that are supported, in an environment of their own; without a CPU build at hand torch
# comes with several GB of CUDA. What compares with curvlinops or opens a browser is not run. A part, for
# example: make test-lowest LOWEST='tests/test_golden.py tests/test_study.py'
LOWEST ?= tests --ignore tests/test_parity.py --ignore tests/test_report_browser.py --ignore tests/test_page_tools.py

test-lowest: build/lowest/made
	build/lowest/bin/python -m pytest -n auto --dist loadgroup $(LOWEST) $(PYTEST)

build/lowest/made: constraints-lowest.txt pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	build/lowest/bin/python -m pip --disable-pip-version-check install -q -c constraints-lowest.txt \
	  --index-url $(TORCH_INDEX) torch numpy || \
	build/lowest/bin/python -m pip --disable-pip-version-check install -q -c constraints-lowest.txt torch numpy
	build/lowest/bin/python -m pip --disable-pip-version-check install -q -c constraints-lowest.txt \
	  -e .[problems,sweep,frames] pytest pytest-xdist hypothesis
	touch $@

# The pages of docs/ as a site that opens from disk, site/index.html; --strict: a broken link is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

# The same at http://127.0.0.1:8000, anew after every change.
docs-serve: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --watch src --watch examples

# The truths that ship with the repository: made where they are missing, then verified.
banks: .venv/run
	for name in $(BANKS); do \
	  $(BIN)/curvfluence bank make $$name $(SHIPPED)/$$name && \
	  $(BIN)/curvfluence bank verify $(SHIPPED)/$$name --again 4 || exit 1; \
	done

# Kills, corruptions, stale and bad inputs, a soak: hours, or with QUICK=1 a twentieth of it in minutes.
torture: .venv/test
	$(BIN)/python -m tests.torture $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

# Code changed on purpose, and whether a test notices: minutes a file, hours for all. A part, for example:
# make mutation ONLY=fidelity/lds
mutation: .venv/mutation
	$(BIN)/python -m tests.mutation $(ONLY)

.venv/mutation: .venv/test
	$(PIP) install -q -c .venv/constraints.txt -e .[mutation]
	touch $@

# Several processes on one machine, an index over a million examples, workers of Dask, and where there is
# an accelerator a language model on it: writes scale.json. Beside: how formulas and projections do.
scale: .venv/test
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/index.py --out scale.json
	$(BIN)/python benchmarks/engines.py --out scale.json
	$(BIN)/python benchmarks/head_to_head.py --out scale.json
	$(BIN)/python benchmarks/paper_plan.py --check
	$(BIN)/python benchmarks/projections.py

bench: .venv/test bench-peers
	$(BIN)/python benchmarks/compare.py $(if $(ONLY),--only $(ONLY)) $(BENCH)
	$(if $(ONLY),,$(BIN)/python benchmarks/trainer.py)
	$(if $(ONLY),,$(BIN)/python benchmarks/curvature.py)

bench-peers: $(PEERS:%=build/peers/%/made)

build/peers/%/made: benchmarks/peers/%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -q --only-binary :all: -r $< || \
	$(@D)/bin/python -m pip --disable-pip-version-check install -q --only-binary :all: \
	  --extra-index-url $(TORCH_INDEX) -r $<
	touch $@

clean:
	rm -rf .venv site

# Changes when TORCH does, so that another torch is really installed.
.venv/torch-$(subst /,_,$(subst =,_,$(TORCH))).wanted:
	$(PYTHON) -m venv .venv
	rm -f .venv/torch-*.wanted
	touch $@

.venv/constraints.txt: constraints.txt Makefile .venv/torch-$(subst /,_,$(subst =,_,$(TORCH))).wanted
	$(if $(TORCH),grep -vE '^(torch|torchvision)==' constraints.txt,cat constraints.txt) > $@

.venv/torch: .venv/constraints.txt
	$(PIP) install -q -c $< $(or $(TORCH),torch) || \
	  $(PIP) install -q -c $< --extra-index-url $(TORCH_INDEX) $(or $(TORCH),torch)
	touch $@

.venv/run: .venv/torch pyproject.toml
	$(PIP) install -q -c .venv/constraints.txt -e .[problems,sweep]
	touch $@

.venv/test: .venv/run
	$(PIP) install -q -c .venv/constraints.txt -e .[test]
	touch $@

.venv/docs: .venv/run
	$(PIP) install -q -c .venv/constraints.txt -e .[docs]
	touch $@

.venv/lint: .venv/test
	$(PIP) install -q -c .venv/constraints.txt -e .[test,lint]
	touch $@
