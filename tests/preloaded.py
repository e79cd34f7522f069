"""Import all of hfgen, and with it torch, diffusers and transformers, into a process that others are forked from."""

import gc
import importlib
import io
import os
import pkgutil

import torch
from matplotlib.figure import Figure

import hfgen

ENVIRONMENT = {name: value for name, value in os.environ.items() if name.startswith("HF_")}  # which imports read
torch.set_num_threads(1)
for _module in pkgutil.walk_packages(hfgen.__path__, "hfgen."):
    if _module.name != "hfgen.__main__":
        importlib.import_module(_module.name)

# What is slow the first time: fonts and mathematical text, and a search for garbage among all that was imported.
_figure = Figure(layout="constrained")
_figure.subplots().set_yscale("log")
_figure.savefig(io.BytesIO())
gc.collect()
gc.freeze()
