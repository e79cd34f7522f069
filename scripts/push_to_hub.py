"""Publish a finished run on the Hub: `python scripts/push_to_hub.py runs/ddpm_mnist --repo_id user/ddpm_mnist`."""

import sys

from hfgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
