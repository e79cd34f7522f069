"""Imports go down only, families never import each other, and the light floors stay light."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "hfgen"
HEAVY = ["torch", "diffusers", "transformers", "evaluate", "accelerate", "datasets", "numpy", "matplotlib", "PIL"]
FAMILIES = ["ddpm", "vae", "gan", "translation", "cyclegan", "classifier"]

# From the ground up; a module may import from lower floors and, within `tasks`, the contract only.
FLOORS = [
    {"hfgen", "hfgen.errors"},
    {"hfgen.untrusted"},
    {"hfgen.models", "hfgen.devices", "hfgen.files", "hfgen.seeds", "hfgen.optimizers", "hfgen.config.training"},
    {"hfgen.parts"},
    {
        "hfgen.pipelines",
        "hfgen.losses",
        "hfgen.adversarial_losses",
        "hfgen.augmentation",
        "hfgen.degradations",
        "hfgen.data",
        *(f"hfgen.config.{family}" for family in FAMILIES),
        "hfgen.options",
        "hfgen.checkpoints",
        "hfgen.launcher",
        "hfgen.processes",
        "hfgen.records",
    },
    {"hfgen.code_files", "hfgen.config"},
    {"hfgen.denoising"},
    {
        "hfgen.sampling",
        "hfgen.loading",
        "hfgen.figures",
        "hfgen.batches",
        "hfgen.binarization",
        "hfgen.metrics",
        "hfgen.pairs",
    },
    {"hfgen.latents", "hfgen.translators"},
    {"hfgen.tasks", "hfgen.measures", "hfgen.report", "hfgen.subjects"},
    {"hfgen.model_kinds"},
    {"hfgen.run_facts"},
    {"hfgen.card", "hfgen.references", "hfgen.translation"},
    {"hfgen.hub", "hfgen.restoration"},
    {"hfgen.training"},
    {"hfgen.run"},
    {"hfgen.evaluation", "hfgen.comparison", "hfgen.analysis"},
    {"hfgen.sweep"},
    {"hfgen.cli"},
    {"hfgen.__main__"},
]


def module_name(path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    known = {module_name(p) for p in PACKAGE.rglob("*.py")}
    return {name for name in names if name in known}


def floor(module: str) -> int:
    for number, names in enumerate(FLOORS):
        if module in names or any(module.startswith(f"{name}.") for name in names - {"hfgen"}):
            return number
    raise AssertionError(f"{module} stands on no floor: give it one")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_imports_go_down(path):
    own = module_name(path)
    contract = {"hfgen.tasks"} if own.startswith("hfgen.tasks.") else set()
    for other in imported_modules(path) - {own, "hfgen"} - contract:
        if own.startswith("hfgen.tasks."):
            assert not other.startswith("hfgen.tasks."), f"{own} imports another family, {other}"
        assert floor(other) < floor(own), f"{own} imports {other}, which is not on a lower floor"


@pytest.mark.parametrize("pattern", ["models/*.py", "pipelines/*.py", "metrics/*/*.py"])
def test_files_that_travel_alone_import_nothing_of_hfgen(pattern):
    for path in PACKAGE.glob(pattern):
        assert not imported_modules(path), f"{path} must import nothing of hfgen"


def test_functions_that_files_that_travel_share_are_the_same_in_each():
    """They cannot import each other, so that each has a copy, which must not be mended alone."""
    copies: dict[str, dict[str, str]] = {}
    for path in [*PACKAGE.glob("models/*.py"), *PACKAGE.glob("pipelines/*.py")]:
        text = path.read_text()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                copies.setdefault(node.name, {})[path.name] = ast.get_source_segment(text, node)
    assert len(copies["_to_tensor"]) == 3
    assert not {name: list(files) for name, files in copies.items() if len(set(files.values())) > 1}


def test_the_loop_knows_no_family():
    for name in ("training.py", "run.py"):
        words = re.findall(r"[a-z]+", (PACKAGE / name).read_text().lower())
        assert not {"diffusion", "unet", *FAMILIES} & set(words), name


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "ddpm", "--help"], ["evaluate", "--help"], ["push", "--help"], ["recipes"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom hfgen.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        f"heavy = set({HEAVY}) & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
