"""Imports run one way, families never import each other, and what is light stays light."""

import ast
import graphlib
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "hfgen"
HEAVY = ["torch", "diffusers", "transformers", "evaluate", "accelerate", "datasets", "numpy", "matplotlib", "PIL"]
FAMILIES = ["ddpm", "vae", "gan", "translation", "cyclegan", "classifier"]
TASKS = [family.replace("ddpm", "diffusion") for family in FAMILIES]

# A module imports from its own room and from those before it.
ROOMS = [
    "utils", "metrics", "models", "losses", "config", "runs", "data", "families", "pipelines", "figures", "judges",
    "sampling", "tasks", "training", "evaluation", "publishing", "api", "cli", "__main__",
]  # fmt: skip


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


def room(module: str) -> int:
    return ROOMS.index(module.split(".")[1])


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/**/*.py")), ids=module_name)
def test_imports_come_from_the_rooms_before(path):
    own = module_name(path)
    for other in imported_modules(path) - {own, "hfgen"}:
        if room(other) > room(own):
            raise AssertionError(f"{own} imports {other}, which is in a later room")
        if own.startswith("hfgen.tasks.") and room(other) == room(own):
            family = other.rpartition(".")[2]
            assert family not in TASKS, f"{own} imports another family, {other}"


def test_no_module_imports_itself_by_way_of_others():
    imports = {module_name(path): imported_modules(path) - {module_name(path)} for path in PACKAGE.rglob("*.py")}
    assert list(graphlib.TopologicalSorter(imports).static_order())


@pytest.mark.parametrize("pattern", ["models/*.py", "pipelines/pipeline_hfgen_*.py", "metrics/*/*.py"])
def test_files_that_travel_alone_import_nothing_of_hfgen(pattern):
    for path in PACKAGE.glob(pattern):
        assert not imported_modules(path), f"{path} must import nothing of hfgen"


def test_functions_that_files_that_travel_share_are_the_same_in_each():
    """They cannot import each other, so that each has a copy, which must not be mended alone."""
    copies: dict[str, dict[str, str]] = {}
    travelling = [*PACKAGE.glob("models/*.py"), *PACKAGE.glob("pipelines/*.py")]
    for path in [*travelling, PACKAGE / "sampling" / "editing_pipeline.py"]:
        text = path.read_text()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                copies.setdefault(node.name, {})[path.name] = ast.get_source_segment(text, node)
    assert len(copies["_to_tensor"]) == 3
    assert not {name: list(files) for name, files in copies.items() if len(set(files.values())) > 1}


def test_the_loop_knows_no_family():
    for name in ("training/trainer.py", "training/run.py"):
        words = re.findall(r"[a-z]+", (PACKAGE / name).read_text().lower())
        assert not {"diffusion", "unet", *FAMILIES} & set(words), name


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "ddpm", "--help"], ["evaluate", "--help"], ["push", "--help"], ["recipes"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom hfgen.cli.main import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        f"heavy = set({HEAVY}) & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
