"""The training, validation and test part of a data set that has one split only: the same for everyone who asks."""

from collections.abc import Sequence

from hfgen.utils.seeds import derive_seed

PARTS = ("train", "validation", "test")


def divide(
    count: int, labels: Sequence[int | None] | None, *, validation_fraction: float, test_fraction: float
) -> dict[str, list[int]]:
    """Divide rows at random into three parts, class by class where there are labels.

    Nothing but the number of a row decides at which place of its class it comes, so that the parts are the same for
    every process, training seed and version of a library, and the test part for every `validation_fraction`. Each
    held-out part gets its fraction of each class, rounded to the nearest whole number, but at least one of a class of
    two or more (the test part first), and one always stays to train on.

    Args:
        count: Number of rows.
        labels: Their classes, or None where there are none.
        validation_fraction: From 0 to below 1.
        test_fraction: Likewise; the sum is below 1.

    Returns:
        The rows of each of `PARTS`, in their order.
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
