"""What the site is made of: tables from the code, and (with the extra `docs`) pages that need no network."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from certify.cli.main import cli
from certify.frontends.onnx_nodes import HANDLERS

ROOT = Path(__file__).resolve().parents[2]
LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]*\bsrc=[\"']?(https?:|//)|<link[^>]*\bhref=[\"']?(https?:|//)")


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_op_of_the_front_end_has_its_row() -> None:
    text = hook("tables").ops()
    for name, entry in HANDLERS.items():
        assert f"| {name} | {', '.join(map(str, sorted(entry.versions)))} |" in text


def test_every_option_of_every_command_is_listed() -> None:
    text = hook("tables").options()
    for name, command in cli.commands.items():
        assert f"## certify {name}" in text
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                assert any(option in text for option in parameter.opts), f"{name} {parameter.opts}"


def test_a_notebook_becomes_text_code_and_output(tmp_path: Path) -> None:
    import json

    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"data": {"text/plain": ["<2>"]}}]},
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert hook("notebooks").page(path) == (
        "# Title\ntext\n\n```python\n1 + 1\n```\n\n<pre class='output'>&lt;2&gt;</pre>\n"
    )


def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("material", reason="the extra docs is not installed: pip install -e '.[docs]'")
    pytest.importorskip("latex2mathml", reason="the extra docs is not installed: pip install -e '.[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setattr(sys, "path", list(sys.path))  # the hooks add their folder
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
    build(config)
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert LOADED.search(text) is None, f"{page}: {LOADED.search(text)}"
        assert "arithmatex" not in text
        assert "<!-- options" not in text
    assert "<math" in (tmp_path / "site" / "bounds.html").read_text(encoding="utf-8")
    assert "--certificates" in (tmp_path / "site" / "options.html").read_text(encoding="utf-8")
