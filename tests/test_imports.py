"""Imports run one way, families never import each other, and what is light stays light."""

import ast
import graphlib
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "hfgen"
HEAVY = [
    "torch", "diffusers", "transformers", "evaluate", "accelerate", "datasets", "numpy", "matplotlib", "optuna", "PIL",
]  # fmt: skip
FAMILIES = ["ddpm", "consistency", "flow_map", "vae", "gan", "translation", "cyclegan", "classifier"]
TASKS = [family.replace("ddpm", "diffusion") for family in FAMILIES]

# A module imports from its own room and from those before it.
ROOMS = [
    "utils", "metrics", "models", "losses", "config", "runs", "data", "families", "pipelines", "figures", "judges",
    "sampling", "tasks", "training", "evaluation", "runtimes", "tuning", "publishing", "serving", "api", "cli",
    "__main__",
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


def definitions(path) -> dict[str, tuple[str, str]]:
    """Return each function and method of a file: the line before it, and its source from the decorators on."""
    lines = path.read_text().splitlines()
    found = {}
    for outer in ast.parse(path.read_text()).body:
        within = outer.body if isinstance(outer, ast.ClassDef) else [outer]
        for node in within:
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
                name = node.name if outer is node else f"{outer.name}.{node.name}"
                found[name] = lines[first - 1].strip(), "\n".join(lines[first : node.end_lineno])
    return found


def test_copies_in_files_that_travel_are_marked_and_are_those_of_the_original():
    """They cannot import each other, so that each has a copy, which must not be mended alone."""
    files = {
        path.stem: definitions(path)
        for path in [*PACKAGE.glob("models/*.py"), *PACKAGE.glob("pipelines/*_hfgen_*.py")]
    }
    marked = 0
    for stem, found in files.items():
        for name, (line, source) in found.items():
            original = re.fullmatch(r"# Copied from hfgen\.\w+\.(\w+)\.([\w.]+)", line)
            if original:
                assert source == files[original[1]][original[2]][1], f"{name} of {stem} is not what it was copied from"
                marked += 1
            elif name.isidentifier():
                others = [
                    other for other in files if name in files[other] and files[other][name][0].startswith("# Copied")
                ]
                same = [other for other in files if other != stem and name in files[other]]
                assert not same or others, f"{name} is in {stem} and {same}: mark the copies"
    assert marked >= 10


def test_the_loop_knows_no_family():
    for name in ("training/trainer.py", "training/run.py"):
        words = re.findall(r"[a-z]+", (PACKAGE / name).read_text().lower())
        assert not {"diffusion", "unet", *FAMILIES} & set(words), name


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "ddpm", "--help"],
        ["tune", "vae", "--help"],
        ["evaluate", "--help"],
        ["push", "--help"],
        ["recipes"],
    ],
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom hfgen.cli.main import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        f"heavy = set({HEAVY}) & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
