"""The files of a finished run: manifest.json, results.csv, results.parquet; each appears whole or not at all."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from certify.disk import write_atomically, write_atomically_with
from certify.report.accounting import CONFIDENCE, Bracket, stage_seconds
from certify.report.assurance import Assurance
from certify.report.result import Report, row

ABOUT = ("model", "data", "norm", "eps", "input_range", "samples", "notes", "options")
PACKAGES = ("certify", "numpy", "scipy", "onnx", "onnxruntime", "torch", "scikit-learn", "pandas", "pyarrow")


def document(report: Report) -> dict[str, Any]:
    """The report as JSON values: what `certify run --json` prints. Infinite margins are null."""
    return {
        **_identity(report),
        "brackets": [bracket_document(b) for b in report.brackets.values()],
        "results": [
            {name: _finite(value) for name, value in row(report, result).items()}
            | {"seconds": result.outcome.seconds, "witness": result.witness_file}
            for result in report.results
        ],
    }


def about(report: Report, before: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says about itself, also while it is running.

    before: what it said when it was begun, with "started"; after an interruption its seconds and memory go on.
    """
    memory = peak_memory()
    device = str(report.options.get("device", "cpu"))
    return {
        **{name: value for name, value in _identity(report).items() if name in ABOUT},
        "command": dict(report.command),
        "started": before["started"],
        "seconds": before.get("seconds", 0.0) + report.seconds,
        "memory": {name: max(size, before.get("memory", {}).get(name, 0)) for name, size in memory.items()},
        "versions": versions(),
        "hardware": hardware(device),
    }


def write_files(report: Report, told: Mapping[str, Any]) -> None:
    """Write the three files into report.out; told: what `about` says. DiskError if the disk refuses."""
    assert report.out is not None, "a report without a folder has no files"
    kept = ("command", "started", "memory", "versions", "hardware")
    frame = report.to_pandas()
    csv = frame.to_csv(index=False, lineterminator="\n").encode()
    write_atomically(report.out / "results.csv", csv)
    write_atomically_with(report.out / "results.parquet", lambda path: frame.to_parquet(path, index=False))
    manifest = _identity(report) | {
        "brackets": [bracket_document(b) for b in report.brackets.values()],
        **{name: told[name] for name in kept},
    }
    write_atomically(report.out / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """Package -> installed version, Python's among them; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> dict[str, object]:
    """What the run ran on, as far as the system tells. device: torch's name of it."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    found: dict[str, object] = {"system": platform.platform(), "cpu": cpu, "cores": os.cpu_count()}
    if device.startswith("cuda"):
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def peak_memory() -> dict[str, int]:
    """Largest resident memory so far, in bytes: of this process, and of the largest of its children that ended."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    who = {"process": resource.RUSAGE_SELF, "child": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(number).ru_maxrss * unit for name, number in who.items()}


def _identity(report: Report) -> dict[str, Any]:
    return {
        "model": {"source": report.model, "sha256": report.model_sha256},
        "data": {"source": report.data, "sha256": report.data_sha256},
        "norm": report.norm,
        "eps": [str(r) for r in report.radii],
        "input_range": list(report.input_range),
        "samples": report.n,
        "complete": report.complete,
        "assurance": asdict(Assurance.of(report.results)),
        "alarms": list(report.alarms),
        "notes": list(report.notes),
        "options": dict(report.options),
        "seconds": {"wall": report.seconds, "stages": stage_seconds(report.results)},
        "out": None if report.out is None else str(report.out),
    }


def bracket_document(b: Bracket) -> dict[str, Any]:
    """Counts and rates of these samples; beside them, never merged, the population's intervals."""
    bounds = {"clean": b.clean, "attacked": b.attacked, "certified": b.certified}
    return {
        "eps": str(b.eps),
        "eps_value": float(b.eps),
        "samples": b.n,
        "counts": {
            "misclassified": b.misclassified,
            "falsified": b.falsified,
            "certified": b.certified,
            "unknown": b.unknown,
            "errors": b.errors,
            "pending": b.pending,
        },
        "bounds": bounds | {"gap": b.gap},
        "rates": {name: b.rate(count) for name, count in (bounds | {"gap": b.gap}).items()},
        "population": {
            "method": "Clopper-Pearson",
            "confidence": CONFIDENCE,
            **{name: list(b.population(count)) for name, count in bounds.items()},
        },
    }


def _finite(value: object) -> object:
    """JSON knows no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
