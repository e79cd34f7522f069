"""hfgen: train, measure, publish and serve small-image generative models on the Hugging Face stack."""

from importlib.metadata import version

__version__ = version("hfgen")
