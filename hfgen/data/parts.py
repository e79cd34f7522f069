"""Deterministic division of a split into training, validation and test parts."""

from collections.abc import Sequence

from hfgen.utils.seeds import derive_seed

PARTS = ("train", "validation", "test")


def divide(
    count: int, labels: Sequence[int | None] | None, *, validation_fraction: float, test_fraction: float
) -> dict[str, list[int]]:
    """Divide rows at random into three parts, stratified by class if there are labels.

    The order of rows within a class depends on their indices only. So the parts are the same for every process,
    training seed and library version, and the test part for every `validation_fraction`. Each held-out part gets its
    fraction of each class, rounded to the nearest integer, but at least one row of a class of two or more (the test
    part first); one row always remains for training.

    Args:
        count: Number of rows.
        labels: Their classes, or None.
        validation_fraction: From 0 to below 1.
        test_fraction: Likewise; their sum is below 1.

    Returns:
        The row indices of each of `PARTS`, in ascending order.
    """
    classes: dict[int | None, list[int]] = {}
    for row in sorted(range(count), key=lambda row: derive_seed("held out", row)):
        classes.setdefault(None if labels is None else labels[row], []).append(row)
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for rows in classes.values():
        first = 0
        for part, fraction in (("test", test_fraction), ("validation", validation_fraction)):
            wanted = max(1, int(fraction * len(rows) + 0.5)) if fraction else 0
            last = min(first + wanted, len(rows) - 1)
            parts[part] += rows[first:last]
            first = last
        parts["train"] += rows[first:]
    return {part: sorted(rows) for part, rows in parts.items()}
