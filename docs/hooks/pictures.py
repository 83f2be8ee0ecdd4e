"""The pictures and notebooks of README and documentation, from real runs: `make pictures`.

The report in the README is of a run of minutes on MNIST; `make pictures RUN=runs/mine` takes one that is there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
RUNS = {
    "curve": ("curve", "models/digits_cnn_robust.onnx", "--eps", "0:0.3:0.02"),
    "distances": ("distance", "models/digits_mlp.onnx", "--samples", "60", "--method", "crown", "--tolerance", "0.05"),
}


def main(run: Path | None) -> None:
    """Run, and put what was drawn where the pages look for it; of `run`, a folder of results, a report's pictures."""
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in RUNS.items():
            out = Path(folder) / name
            subprocess.run([sys.executable, "-m", "certify", *arguments, "--out", str(out)], cwd=ROOT, check=True)
            shutil.copy(out / f"{name}.svg", PICTURES / f"{name}.svg")
        if run is not None:
            page = Path(folder) / "report.html"
            report = [sys.executable, "-m", "certify", "report", str(run.resolve()), "--out", str(page)]
            subprocess.run(report, cwd=ROOT, check=True)
            photograph(page)
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        execute(path)


def photograph(page: Path) -> None:
    """report-light.png and report-dark.png: a page as Chromium shows it, in 64 colours."""
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("the pictures of a report need Chromium")
    looks = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=6000", "--window-size=896,952"]
    for scheme, name in enumerate(("dark", "light")):
        picture = PICTURES / f"report-{name}.png"
        given = [f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}", page.as_uri()]
        subprocess.run([browser, *looks, *given], check=True, capture_output=True)
        Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)


def execute(path: Path) -> None:
    """Run a notebook and store it with what it printed, without times."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
