"""Lower layers never import higher ones, no module-level import cycles, and a light `import certify`."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the bottom up; a module belongs to the longest prefix that it bears.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("certify.check",),
    ("certify.errors", "certify.arrays", "certify.taps", "certify.verdict", "certify.options", "certify.version"),
    ("certify.rules", "certify.disk", "certify.config", "certify.events", "certify.picture", "certify.executors"),
    ("certify.graph", "certify.property"),
    ("certify.model",),
    ("certify.certificate",),
    ("certify.ops",),
    ("certify.bounding", "certify.attacks", "certify.frontends", "certify.solvers"),
    ("certify.trainers",),
    ("certify.models",),
    ("certify.bab", "certify.mip", "certify.smoothing"),
    ("certify.machine", "certify.settings"),
    ("certify.judge",),
    ("certify.pipeline",),
    ("certify.run_folder",),
    ("certify.store", "certify.distance", "certify.pieces"),
    ("certify.runner",),
    ("certify.curve",),
    ("certify.report", "certify.gate", "certify.gate_baseline", "certify.gate_decision"),
    ("certify.shards",),
    ("certify.api", "certify.fingerprint", "certify.merge", "certify.training", "certify.zoo", "certify.serve"),
    ("certify.cli", "certify.pytest_plugin"),
    ("certify", "certify.__main__"),
)
RANK = {prefix: rank for rank, layer in enumerate(LAYERS) for prefix in layer}
# The trusted checker imports nothing else of ours, or sharing code would share the bug.
ALONE = "certify.check"
# Importing any of these takes longer than a small property needs.
HEAVY = ("torch", "pandas", "pyarrow", "onnxruntime", "sklearn", "statsmodels")


def modules() -> dict[str, Path]:
    """Module name -> file, for every module of the package (the links are followed)."""
    found = {}
    folders = [ROOT / "certify", *(p for p in (ROOT / "certify").iterdir() if p.is_symlink())]
    for folder in folders:
        for path in folder.rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def rank(name: str) -> int:
    """Height of a module; the bare package is the top, and anything that no row names is a failure."""
    prefixes = [p for p in RANK if p != "certify" and inside(name, p)]
    if not prefixes and name != "certify":
        raise KeyError(name)
    return RANK[max(prefixes, key=len, default="certify")]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(path: Path, *, module_level: bool) -> set[str]:
    """Our modules that a file imports; with `module_level`, only those that importing it runs."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if module_level and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return {name for name in found if inside(name, "certify")}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_nothing_of_a_higher_layer(name: str) -> None:
    used = imports(MODULES[name], module_level=False)
    if inside(name, ALONE):
        assert all(inside(other, ALONE) for other in used), f"{name} must import nothing else of ours: {used}"
        return
    for other in used:
        assert other in MODULES, f"{name} imports {other}, which does not exist"
        if inside(other, ALONE):
            continue
        assert rank(other) <= rank(name), f"{name} imports {other}, which is a higher layer"


def test_every_module_has_its_layer() -> None:
    for name in MODULES:
        if not inside(name, ALONE):
            assert rank(name) in range(len(LAYERS)), f"{name} has no layer"


def test_no_import_cycles_at_module_level() -> None:
    edges = {name: imports(path, module_level=True) - {name} for name, path in MODULES.items()}
    try:
        tuple(TopologicalSorter(edges).static_order())
    except CycleError as error:
        pytest.fail("import cycle: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize("name", ["certify", "certify.cli.main", "certify.__main__"])
def test_importing_is_light(name: str) -> None:
    if name not in MODULES:
        pytest.skip(f"{name} does not exist yet")
    script = f"import sys, {name}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", f"import {name} brings in {done.stdout.strip()}"


def test_the_walk_sees_every_folder() -> None:
    """The laws above hold for nothing if the walk finds nothing."""
    assert {"certify", "certify.graph", "certify.ops.relu", "certify.frontends", "certify.models"} <= set(MODULES)
