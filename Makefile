# make book: build the book.  make test: check everything.  make check-pages: open the built book in a browser.
# make pdf, make epub: the built book as one file.  make colab: run every chapter as Colab does.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: book test lint check-pages pdf epub colab

# Each is a command of the library, which works where there is no make; only the environment is made here.
book test lint check-pages pdf epub colab: .venv/installed
	@$(BIN)/python -m subspace_lib $@

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 ..." % v[:2])'
	@echo "Making .venv ..."
	@$(PYTHON) -m venv .venv
	@echo "Installing PyTorch (1 of 2) ..."
	@$(INSTALL) $$(sed -n '/^torch/p' requirements.txt)
	@echo "Installing Jupyter Book and the tools (2 of 2) ..."
	@$(INSTALL) --requirement requirements.txt --editable .
	@touch $@
