"""Train a variational autoencoder: `accelerate launch scripts/train_vae.py --config vae_mnist_linear`."""

import sys

from hfgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "vae", *sys.argv[1:]]))
