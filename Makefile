# The five commands of a contributor: make setup, then make lint, types, test, docs. `.ci/run` does all of it in new environments.
BIN = .venv/bin

setup:
	python3 -m venv .venv
	$(BIN)/pip install "torch==2.13.0" "ruff==0.17.5" "mypy==2.4.1" "pre-commit>=4" -e ".[test,docs]"
	$(BIN)/pre-commit install

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy --strict torch_clipped

test:
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

docs:
	$(BIN)/python -m sphinx -W --keep-going -n -b html docs build/docs

.PHONY: setup lint types test docs
