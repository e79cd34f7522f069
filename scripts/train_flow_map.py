"""Train a flow map: `accelerate launch scripts/train_flow_map.py --config flow_map_conditional_mnist_cpu10min`."""

import sys

from hfgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "flow_map", *sys.argv[1:]]))
