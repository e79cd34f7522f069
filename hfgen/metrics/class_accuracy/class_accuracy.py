"""Accuracy of a classifier on images of given classes."""

import datasets
import evaluate
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

_CITATION = """\
@inproceedings{ravuri2019classification, title={Classification Accuracy Score for Conditional Generative Models},
  author={Ravuri, Suman and Vinyals, Oriol}, booktitle={NeurIPS}, year={2019}}"""

_DESCRIPTION = """\
Accuracy of a classifier's predictions, over all images and per class. For generated images and a classifier trained
on real ones, it measures class fidelity. For real images and a classifier trained on generated ones, it is the
classification accuracy score."""

_INPUTS = """\
Args:
    predictions: Predicted classes, int (N,).
    references: True or intended classes, int (N,).
    num_classes: Number of classes.
Returns:
    accuracy: From 0 to 1.
    accuracy_per_class: One value per class, None for a class without images.
Examples:
    >>> module = evaluate.load("hfgen/class_accuracy")
    >>> module.compute(predictions=[0, 1, 1, 1], references=[0, 0, 1, 1], num_classes=2)
    {'accuracy': 0.75, 'accuracy_per_class': [0.5, 1.0]}
"""


def class_accuracy(predictions: Tensor, references: Tensor, num_classes: int) -> tuple[float, list[float | None]]:
    """Return the accuracy over all images, (N,) and (N,), and within each class, by torchmetrics."""
    accuracies = multiclass_accuracy(predictions, references, num_classes, average="none").tolist()
    present = references.bincount(minlength=num_classes) > 0
    per_class = [value if there else None for value, there in zip(accuracies, present.tolist(), strict=True)]
    return multiclass_accuracy(predictions, references, num_classes, average="micro").item(), per_class


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ClassAccuracy(evaluate.Metric):
    """The `evaluate` module."""

    def _info(self):
        label = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, predictions, references, num_classes=None):
        if num_classes is None:
            raise ValueError("num_classes is missing: the number of classes")
        accuracy, per_class = class_accuracy(torch.as_tensor(predictions), torch.as_tensor(references), num_classes)
        return {"accuracy": accuracy, "accuracy_per_class": per_class}
