"""The order in which certify.check asks to be read names every module once, and no module needs a later one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import certify.check

FOLDER = Path(certify.check.__file__).parent
ORDER = re.findall(r"^    (\w+)  ", certify.check.__doc__ or "", re.MULTILINE)


def needed(path: Path) -> set[str]:
    """The modules of the package that a module imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "certify.check":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("certify.check."):
            found.add((node.module or "").removeprefix("certify.check."))
    return found


def test_every_module_is_named_once() -> None:
    modules = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("__"))
    assert sorted(ORDER) == modules


def test_no_module_needs_a_later_one() -> None:
    for at, module in enumerate(ORDER):
        assert needed(FOLDER / f"{module}.py") <= set(ORDER[:at]), module
