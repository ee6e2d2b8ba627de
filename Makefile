# make book: build the book.  make test: check everything.  make check-pages: open the built book in a browser.
# make pdf: print the built book as one PDF.  make colab: run every chapter as Colab does.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: book test lint check-pages pdf colab

book: .venv/installed
	@$(BIN)/python -m subspace_lib book

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not browser"
	OMP_NUM_THREADS=1 $(BIN)/pytest --nbmake --nbmake-timeout=300 book

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell

check-pages: .venv/installed
	$(BIN)/pytest -m browser tests

pdf: .venv/installed
	@$(BIN)/python -m subspace_lib pdf

# The packages of .venv without the checkout, and Colab's ipywidgets before its own.
colab: .venv/colab
	SUBSPACE_DATA=$${SUBSPACE_DATA:-$(CURDIR)/data} PYTHONPATH=$(CURDIR)/.venv/colab:$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])') \
		$$($(BIN)/python -c 'import sys; print(sys._base_executable)') tests/colab.py .

.venv/colab: .venv/installed
	@$(INSTALL) --target $@ --upgrade --no-deps ipywidgets==7.7.1 ipython_genutils

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 ..." % v[:2])'
	@echo "Making .venv ..."
	@$(PYTHON) -m venv .venv
	@echo "Installing PyTorch (1 of 2) ..."
	@$(INSTALL) $$(sed -n '/^torch/p' requirements.txt)
	@echo "Installing Jupyter Book and the tools (2 of 2) ..."
	@$(INSTALL) --requirement requirements.txt --editable .
	@touch $@
