"""The pictures and notebooks of README and documentation, from real runs: `make pictures`."""

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


def main() -> None:
    """Run, and put what was drawn where the pages look for it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in RUNS.items():
            out = Path(folder) / name
            subprocess.run([sys.executable, "-m", "certify", *arguments, "--out", str(out)], cwd=ROOT, check=True)
            shutil.copy(out / f"{name}.svg", PICTURES / f"{name}.svg")
        page = Path(folder) / "report.html"
        subprocess.run(
            [sys.executable, "-m", "certify", "report", str(Path(folder) / "curve"), "--out", str(page)],
            cwd=ROOT,
            check=True,
        )
        photograph(page, PICTURES / "report.png")
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        execute(path)


def photograph(page: Path, picture: Path) -> None:
    """A page as Chromium shows it, in 64 colours; without Chromium the picture stays as it is."""
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(f"{picture.name} stays as it is: there is no Chromium", file=sys.stderr)
        return
    looks = ["--hide-scrollbars", "--virtual-time-budget=6000", "--window-size=1200,1250"]
    light = "--blink-settings=preferredColorScheme=1"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *looks, light, f"--screenshot={picture}"]
    subprocess.run([*command, page.as_uri()], check=True, capture_output=True)
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
    main()
