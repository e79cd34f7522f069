# The two commands of the README, and what they stand on. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICKSTART_RUN ?= runs/ddpm_digits_quickstart
QUICKSTART_FLAGS ?=

.PHONY: help quickstart test style clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed  ## train a small DDPM on handwritten digits and show what it draws
	$(BIN)/hfgen train ddpm --config ddpm_digits_quickstart --output_dir $(QUICKSTART_RUN) \
		--resume_from_checkpoint latest $(QUICKSTART_FLAGS)
	$(BIN)/hfgen sample $(QUICKSTART_RUN) --num_images 64 --output $(QUICKSTART_RUN)/quickstart.png
	@echo "The model is in $(QUICKSTART_RUN), the digits that it draws in $(QUICKSTART_RUN)/quickstart.png"
	@echo "For commands of your own: source $(BIN)/activate"

test: $(VENV)/.installed  ## run every test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --junit-xml=$(VENV)/tests.xml
	@echo "All tests passed; the report is in $(VENV)/tests.xml"

style: $(VENV)/.installed-dev  ## check the code's style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove the environment and the build leftovers, keep the runs
	rm -rf $(VENV) build *.egg-info
