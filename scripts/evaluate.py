"""Measure how good a model's images are: `python scripts/evaluate.py runs/ddpm_mnist`."""

import sys

from hfgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
