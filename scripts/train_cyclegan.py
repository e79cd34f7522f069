"""Train image-to-image networks without pairs: `accelerate launch scripts/train_cyclegan.py --config RECIPE`."""

import sys

from hfgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "cyclegan", *sys.argv[1:]]))
