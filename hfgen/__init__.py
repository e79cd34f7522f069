"""hfgen: train, measure, publish and serve small-image generative models on the Hugging Face stack."""

import importlib
from importlib.metadata import version
from typing import Any

__all__ = ["load"]
__version__ = version("hfgen")


def __getattr__(name: str) -> Any:
    """Import `load` when it is asked for, so that the command line need not wait for torch."""
    if name == "load":
        return importlib.import_module("hfgen.pipelines.loading").load
    raise AttributeError(f"module {__name__} has no attribute {name}")
