"""The notebooks run from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path) -> None:
    pytest.importorskip("ipykernel", reason="notebooks need ipykernel: pip install -e '.[dev]'")
    nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat: pip install -e '.[dev]'")
    client = pytest.importorskip("nbclient", reason="notebooks need nbclient: pip install -e '.[dev]'")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    client.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(path.parent)}}).execute()


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3
