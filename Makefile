# The two commands of the README, and what they stand on. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICKSTART_RUN ?= runs/ddpm_digits_quickstart
QUICKSTART_FLAGS ?=
GOLDEN ?= runs/golden
# The models in model_cards: each at most 4 MB in float16.
ZOO := ddpm_conditional_mnist_cpu60s ddpm_conditional_mnist_cpu5min ddpm_mnist_clusters_cpu5min ddpm_mnist_cpu5min \
	ddpm_conditional_fashion_mnist_cpu10min ddpm_fashion_mnist_clusters_cpu10min \
	ddpm_conditional_cifar10_cpu60min vae_mnist_flow_cpu5min translation_fashion_mnist_cpu10min \
	gan_conditional_mnist_cpu10min gan_mnist_cpu10min gan_conditional_fashion_mnist_cpu10min gan_fashion_mnist_cpu10min \
	consistency_mnist_cpu10min consistency_fashion_mnist_cpu10min consistency_cifar10_cpu25min \
	flow_map_conditional_mnist_cpu10min

JUDGES := digits mnist mnist_regnet fashion_mnist fashion_mnist_regnet cifar10 cifar10_regnet

.PHONY: help quickstart test test-browser site style judges golden results cards clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[test]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, where pip takes one; some are not for this Python
	@touch $@

$(VENV)/oldest-diffusers: $(VENV)/.installed  # whose version is the lower bound in pyproject.toml
	$(BIN)/pip install --quiet --no-deps --upgrade --target $@ \
		"diffusers==$$(sed -n 's/.*"diffusers>=\(.*\)".*/\1/p' pyproject.toml)"

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed  ## train a small DDPM on handwritten digits and show what it draws
	$(BIN)/hfgen train ddpm --config ddpm_digits_quickstart --output_dir $(QUICKSTART_RUN) \
		--resume_from_checkpoint latest $(QUICKSTART_FLAGS)
	$(BIN)/python scripts/quickstart.py $(QUICKSTART_RUN)
	@echo "The model is in $(QUICKSTART_RUN), its digits beside real ones in $(QUICKSTART_RUN)/quickstart.png"
	@echo "For commands of your own: source $(BIN)/activate"

test: $(VENV)/.installed $(VENV)/oldest-diffusers  ## run every test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 HFGEN_OLDEST_DIFFUSERS=$(abspath $(VENV)/oldest-diffusers) \
		$(BIN)/python -m pytest --numprocesses auto --dist worksteal --junit-xml=$(VENV)/tests.xml
	@echo "All tests passed; the report is in $(VENV)/tests.xml"

$(VENV)/.installed-browser: $(VENV)/.installed  # Selenium, and Debian's Chromium where there is none
	$(BIN)/pip install --quiet -c constraints.txt -e '.[browser]'
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || { apt-get update -qq && apt-get install -qq -y chromium chromium-driver; }
	@touch $@

test-browser: $(VENV)/.installed-browser  ## run the tests of the pages of hfgen demo and hfgen studio, in Chromium
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser --numprocesses auto --dist worksteal
	@echo "All tests in the browser passed"

site: $(VENV)/.installed  ## write a page on which all models in model_cards draw in the browser, in runs/site
	$(BIN)/hfgen demo $(ZOO) --output runs/site --title "The models of hfgen"

style: $(VENV)/.installed-dev  ## check the code's style, and the types of the Python API
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

judges: $(VENV)/.installed  ## train the classifiers that judge images anew, and put them into the package
	set -e; for name in $(JUDGES); do \
		$(BIN)/hfgen train classifier --config classifier_$$name --resume_from_checkpoint latest; \
		$(BIN)/hfgen evaluate runs/classifier_$$name; \
		mkdir -p hfgen/judges/$$name; \
		cd runs/classifier_$$name; \
		cp config.json model.safetensors preprocessor_config.json evaluation.json ../../hfgen/judges/$$name; \
		cp evaluation.md ../../hfgen/judges/$$name/README.md; \
		cd ../..; \
	done
	@echo "The judges are in hfgen/judges; now measure the models again"

golden: $(VENV)/.installed  ## keep what every family makes in runs/golden, or compare with what is kept there
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/golden.py $(GOLDEN)

results: $(VENV)/.installed  ## write RESULTS.md and docs/speedrun.md from the evaluations in model_cards
	$(BIN)/hfgen results model_cards --output RESULTS.md
	$(BIN)/python benchmarks/speedrun.py

cards: $(VENV)/.installed  ## write the pages of the recipes' models in runs to model_cards, and the models of the zoo
	set -e; for recipe in hfgen/recipes/*.yaml; do \
		name=$$(basename $$recipe .yaml); \
		for run in runs/$$name runs/$$name/$$name-*; do \
			[ -f $$run/run.json ] || continue; \
			weights=; \
			case " $(ZOO) " in *" $$name "*) weights="--weights float16";; esac; \
			$(BIN)/hfgen card $$run --gallery model_cards $$weights; \
		done; \
	done

clean:  ## remove the environment and the build leftovers, keep the runs
	rm -rf $(VENV) build *.egg-info
