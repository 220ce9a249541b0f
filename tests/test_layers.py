"""Who imports whom: no circles, and what Ray Data's own processes import is free of PyTorch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.shared import ROOT

PACKAGE = ROOT / "multas_ray"
LIGHT = ["multas_ray.data.batch", "multas_ray.data.packing", "multas_ray.data.stream", "multas_ray.tasks"]
"""Modules that a process imports which unpickles a function of the stream."""
BELOW = {
    "tasks": ("teacher", "train", "study", "deploy", "report", "formats"),
    "model": ("data", "teacher", "train", "study", "deploy", "report", "formats"),
    "data": ("model", "teacher", "train", "study", "deploy", "report", "formats"),
    "evaluate": ("teacher", "train", "study", "deploy", "report", "formats"),
    "teacher": ("train", "study", "deploy", "report", "formats"),
    "report": ("teacher", "train", "study", "deploy", "formats"),
    "train": ("study", "deploy", "formats"),
    "deploy": ("teacher", "train", "study"),
}
"""Packages that lie above a package: it imports nothing of theirs."""


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in PACKAGE.rglob("*.py")}


def imports_of(file: Path) -> set[str]:
    """Modules of the package that a module imports when it is imported itself."""
    found = set()
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("multas_ray"):
            names = [f"{statement.module}.{alias.name}" for alias in statement.names]
            found |= {name if name in MODULES else statement.module for name in names}
        elif isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names if alias.name in MODULES}
    return found


def test_modules_import_each_other_without_circles():
    graph = {module: imports_of(file) - {module} for module, file in MODULES.items()}
    assert sum(map(len, graph.values())) > 300, "the imports were found"
    # Raises CycleError, which names the circle.
    tuple(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("package", BELOW)
def test_packages_import_nothing_of_those_above_them(package):
    above = {f"multas_ray.{name}" for name in BELOW[package]}
    wrong = [
        f"{module} imports {imported}"
        for module, file in MODULES.items()
        if module.startswith(f"multas_ray.{package}.")
        for imported in imports_of(file)
        if any(imported == name or imported.startswith(f"{name}.") for name in above)
    ]
    assert not wrong


@pytest.mark.parametrize("module", [*LIGHT, "multas_ray.tasks.detection.rows", "multas_ray.tasks.segmentation.rows"])
def test_what_ray_datas_processes_import_is_free_of_pytorch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("package", ["tasks", "model"])
def test_networks_and_losses_are_free_of_ray(package):
    text = {file: file.read_text() for file in (PACKAGE / package).rglob("*.py")}
    assert text
    assert not [file.name for file, code in text.items() if "import ray" in code or "from ray" in code]
