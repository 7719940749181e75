# `make demo` and `make test` do all set-up themselves, in a private .venv.
# Needs: make, git, and Python >= 3.11 with its venv module. Nothing is installed outside .venv.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types clean

BIN := $(CURDIR)/.venv/bin
# For every Cog runtime: coglet starts its worker as plain `python`, from PATH.
export PATH := $(BIN):$(PATH)

help:
	@echo "make demo              answer the README's query, all on this machine (MODEL=... for another model)"
	@echo "make test              run the tests"
	@echo "make lint types        ruff and mypy"
	@echo "make clean             remove .venv and everything that was built"

setup:
	@scripts/setup

demo: setup
	@$(BIN)/lmtp-replicate demo $(if $(MODEL),"$(MODEL)")

# Two at a time: half of the tests wait for processes that they have started.
test: setup
	@$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: setup
	@$(BIN)/mypy

clean:
	rm -rf .venv .venv.new work .cache dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
