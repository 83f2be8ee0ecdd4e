"""A notebook as a Markdown page: its text, its code, and what the code printed."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def page(path: Path) -> str:
    """The page's Markdown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell)) + "\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        yield from _output(output)


def _plain(tag: re.Match[str]) -> str:
    """The tag without what pandas says about looks: the site has its own."""
    return f"<{tag[1]}>" if tag[1] else ""


def _output(output: dict[str, Any]) -> Iterator[str]:
    data = output.get("data", {})
    if "image/svg+xml" in data:
        yield f"<div class='output'>{' '.join(''.join(data['image/svg+xml']).split())}</div>"
    elif "image/png" in data:
        yield f"<img class='output' alt='' src='data:image/png;base64,{''.join(data['image/png']).strip()}'>"
    elif "text/html" in data:
        table = re.sub(
            r"<style.*?</style>|<(table|tr|td|th)\b[^>]*>", _plain, "".join(data["text/html"]), flags=re.DOTALL
        )
        yield f"<div class='output'>{' '.join(table.split())}</div>"
    else:
        text = "".join(output.get("text", data.get("text/plain", "")))
        yield f"<pre class='output'>{html.escape(text.rstrip())}</pre>"
