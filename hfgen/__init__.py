"""hfgen: train, evaluate, publish and serve generative models of small images on the Hugging Face stack."""

import importlib
from importlib.metadata import version
from typing import Any

_EXPORTS = {  # of the public names, imported on first access; `__init__.pyi` declares them for type checkers
    "hfgen.api.calls": (
        "analyze", "card", "compare_samplers", "demo", "distill", "edit", "evaluate", "export", "load", "publish_all",
        "push", "recipes", "results", "sample", "studio", "train", "tune",
    ),
    "hfgen.api.outputs": ("Animation", "Edited", "Images", "Report", "Study"),
    "hfgen.config": (
        "ClassifierConfig", "ConsistencyConfig", "CycleGANConfig", "DDPMConfig", "FlowMapConfig", "GANConfig",
        "TranslationConfig", "VAEConfig",
    ),
    "hfgen.config.commands": (
        "AnalyzeConfig", "CardConfig", "CompareSamplersConfig", "DemoConfig", "EvaluateConfig", "ExportConfig",
        "PublishAllConfig", "PushConfig", "ResultsConfig", "SampleConfig", "StudioConfig", "TranslateConfig",
    ),
    "hfgen.runs.folder": ("RunFolder",),
    "hfgen.utils.errors": ("InterruptedTrainingError", "PublishingError", "TrainingError", "UserError"),
}  # fmt: skip
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = [*_MODULES]
__version__ = version("hfgen")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
