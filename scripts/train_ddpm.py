"""Train a denoising diffusion model: `accelerate launch scripts/train_ddpm.py --config ddpm_mnist`."""

import sys

from hfgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "ddpm", *sys.argv[1:]]))
