"""Train a classifier to judge images by: `accelerate launch scripts/train_classifier.py --config classifier_mnist`."""

import sys

from hfgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "classifier", *sys.argv[1:]]))
