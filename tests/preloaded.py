"""Import all of hfgen, and with it torch, diffusers and transformers, into a process that others are forked from."""

import importlib
import os
import pkgutil

import torch

import hfgen

ENVIRONMENT = {name: value for name, value in os.environ.items() if name.startswith("HF_")}  # which imports read
torch.set_num_threads(1)
for _module in pkgutil.walk_packages(hfgen.__path__, "hfgen."):
    if _module.name != "hfgen.__main__":
        importlib.import_module(_module.name)
