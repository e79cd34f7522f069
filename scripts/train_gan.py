"""Train a generative adversarial network: `accelerate launch scripts/train_gan.py --config gan_mnist_cpu10min`."""

import sys

from hfgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "gan", *sys.argv[1:]]))
