"""How often a classifier finds in an image the class that it is meant to show."""

import datasets
import evaluate
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

_CITATION = """\
@inproceedings{ravuri2019classification, title={Classification Accuracy Score for Conditional Generative Models},
  author={Ravuri, Suman and Vinyals, Oriol}, booktitle={NeurIPS}, year={2019}}"""

_DESCRIPTION = """\
Share of images in which a classifier finds the class that they are meant to show, over all and within each class.
Of generated images and a classifier of real ones: how well the model obeys its labels. Of real images and a
classifier trained on generated ones: the classification accuracy score."""

_INPUTS = """\
Args:
    predictions: Classes that the classifier finds, int (N,).
    references: Classes that are meant, int (N,).
    num_classes: How many classes there are.
Returns:
    accuracy: From 0 to 1.
    accuracy_per_class: One a class, None for a class without images.
Examples:
    >>> module = evaluate.load("hfgen/class_accuracy")
    >>> module.compute(predictions=[0, 1, 1, 1], references=[0, 0, 1, 1], num_classes=2)
    {'accuracy': 0.75, 'accuracy_per_class': [0.5, 1.0]}
"""


def class_accuracy(predictions: Tensor, references: Tensor, num_classes: int) -> tuple[float, list[float | None]]:
    """Return the accuracy over all images, (N,) and (N,), and within each class, by torchmetrics."""
    shares = multiclass_accuracy(predictions, references, num_classes, average="none").tolist()
    present = references.bincount(minlength=num_classes) > 0
    per_class = [share if there else None for share, there in zip(shares, present.tolist(), strict=True)]
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
            raise ValueError("num_classes is missing: how many classes there are")
        accuracy, per_class = class_accuracy(torch.as_tensor(predictions), torch.as_tensor(references), num_classes)
        return {"accuracy": accuracy, "accuracy_per_class": per_class}
