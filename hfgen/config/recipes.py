"""Recipes, the built-in configurations: YAML files whose header says what they train, for how long and how well."""

import re
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A recipe by its header.

    Attributes:
        name: What `--config` takes.
        family: The family in `hfgen train FAMILY`.
        about: What it trains.
        dataset: The data set.
        measured: Training time and hardware, or that it has not been trained.
        expected: The result.
        is_first: Whether a newcomer should start here.
    """

    name: str
    family: str
    about: str
    dataset: str
    measured: str
    expected: str
    is_first: bool

    @property
    def is_trained(self) -> bool:
        """Whether it has been trained and measured."""
        return not self.measured.startswith("not trained")

    @property
    def summary(self) -> str:
        """The training time and the first result, without the details in the header."""
        time = re.split(r" \(|[,;] |\.(?: |$)", self.measured)[0]
        result = re.match(r"(?:[^(,;.]|[,.]\d)*(?:\([^)]*\))?", self.expected)[0].strip()
        return f"{time}: {result}" if self.is_trained else time


def read_recipes() -> dict[str, Recipe]:
    """Return the recipes by name."""
    return {path.stem: _read(path) for path in sorted(RECIPES.glob("*.yaml"))}


def _read(path: Path) -> Recipe:
    text = path.read_text(encoding="utf-8")
    header = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    about, *others = re.split(r" (Start here|Command|Measured|Expected)[:.] ?", header)
    said = dict(zip(others[::2], others[1::2], strict=True))
    (dataset,) = re.findall(r"^dataset_name: (\w+)$", text, re.MULTILINE)
    family = re.search(r"(?:hfgen train |scripts/train_)(\w+)", header)[1]
    return Recipe(path.stem, family, about, dataset, said["Measured"], said["Expected"], "Start here" in said)
