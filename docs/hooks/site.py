"""What mkdocs calls: pages that are made from the code, formulas as MathML, notebooks as pages; nothing is fetched."""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import notebooks
import tables

FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
GENERATED = {"<!-- options of all commands -->": tables.options, "<!-- supported ops -->": tables.ops}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Notebooks stand in the navigation by their own names."""
    config.nav = _renamed(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Each notebook becomes a page."""
    for path in sorted((Path(config.docs_dir) / "notebooks").glob("*.ipynb")):
        name = f"notebooks/{path.stem}.md"
        for old in (f"notebooks/{path.name}", name):
            if found := files.get_file_from_path(old):
                files.remove(found)
        files.append(File.generated(config, name, content=notebooks.page(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Tables take the place of their marks."""
    for mark, make in GENERATED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """LaTeX becomes MathML, which browsers draw by themselves."""
    return FORMULA.sub(lambda found: _math(found[1], unescape(found[2])), html)


def _math(kind: str, text: str) -> str:
    source = text.strip().removeprefix("\\(").removesuffix("\\)").removeprefix("\\[").removesuffix("\\]").strip()
    formula: str = convert(source, display="block" if kind == "div" else "inline")
    return formula


def _renamed(nav: Any) -> Any:
    if isinstance(nav, str):
        return re.sub(r"\.ipynb$", ".md", nav)
    if isinstance(nav, dict):
        return {title: _renamed(entry) for title, entry in nav.items()}
    return [_renamed(entry) for entry in nav] if nav else nav
