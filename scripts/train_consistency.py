"""Distil a diffusion model: `accelerate launch scripts/train_consistency.py --teacher runs/mine`."""

import sys

from hfgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "consistency", *sys.argv[1:]]))
