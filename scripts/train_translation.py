"""Train an image-to-image network: `accelerate launch scripts/train_translation.py --config RECIPE`."""

import sys

from hfgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "translation", *sys.argv[1:]]))
