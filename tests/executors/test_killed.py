"""Whoever is killed, -9, in the middle: with --resume the verdicts are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import ray_nodes

import certify

if not Path("/proc/self/task").is_dir():
    pytest.skip("it finds the processes of a run in /proc", allow_module_level=True)

# Many cheap results, so that there is a middle to be killed in.
RADII = [f"{k}/1000" for k in range(1, 240, 4)]
SAMPLES, MISCLASSIFIED = 6, 5
PATIENCE = 600  # seconds: for a machine that is busy with other things


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    data = ["--data", str(folder / "data.npz"), "--samples", str(SAMPLES), "--eps", ",".join(RADII)]
    command = [sys.executable, "-m", "certify", "run", str(folder / "net.onnx"), *data, "--method", "ibp"]
    command += ["--device", "cpu", "--quiet", "--out", str(folder / "out"), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(out: Path) -> dict[tuple[int, str], str]:
    if not (out / "results.sqlite").exists():
        return {}
    try:
        with sqlite3.connect(out / "results.sqlite", timeout=30) as database:
            rows = database.execute(
                "SELECT s.id, r.eps, r.verdict FROM results r JOIN samples s ON s.position = r.position"
            ).fetchall()
    except sqlite3.OperationalError:
        return {}
    assert len({(i, eps) for i, eps, _ in rows}) == len(rows), "a result twice"
    return {(int(i), str(eps)): str(verdict) for i, eps, verdict in rows}


def decided(out: Path) -> int:
    """Results that a worker gave, not the clean stage."""
    return len({key for key in results(out) if key[0] != MISCLASSIFIED})


def until(done: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The worker processes of a run."""
    names = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for name in names for child in name.read_text().split()]
    return [c for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def undisturbed(linear: Path) -> dict[tuple[int, str], str]:
    data, eps = str(linear / "data.npz"), ",".join(RADII)
    report = certify.run(linear / "net.onnx", data, eps=eps, method="ibp", samples=SAMPLES, device="cpu")
    return {(r.id, r.eps.key): r.outcome.verdict.value for r in report.results}


def test_workers_parent_and_two_at_once(linear: Path, undisturbed: dict[tuple[int, str], str]) -> None:
    out = linear / "out"
    first = start(linear, "--workers", "2")
    until(lambda: decided(out) > 20 and len(children(first.pid)) == 2, first)
    workers = children(first.pid)
    os.kill(workers[0], signal.SIGKILL)
    before = decided(out)
    until(lambda: decided(out) > before + 20, first)
    second = start(linear, "--workers", "2", "--resume")
    _, told = second.communicate(timeout=PATIENCE)
    assert second.returncode == 2
    assert "another certify process is writing there" in told
    workers = children(first.pid)
    first.kill()
    first.communicate()
    kept = results(out)
    assert 40 < len(kept) < len(undisturbed)
    until_gone = time.monotonic() + PATIENCE
    while not all(map(gone, workers)):
        assert time.monotonic() < until_gone, "the workers outlive their parent"
        time.sleep(0.02)
    third = start(linear, "--workers", "2", "--resume")
    _, told = third.communicate(timeout=PATIENCE)
    assert third.returncode == 0, told
    assert results(out) == undisturbed
    assert kept.items() <= undisturbed.items()


@pytest.fixture
def cluster() -> Iterator[Any]:
    with ray_nodes(3) as made:
        yield made


def actors() -> list[int]:
    """The processes of our actors."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::Hand"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.long
def test_an_actor_a_node_and_the_driver(cluster: Any, linear: Path, undisturbed: dict[tuple[int, str], str]) -> None:
    out = linear / "out"
    others = set(actors())
    first = start(linear, "--executor", "ray")
    until(lambda: decided(out) > 20, first)
    os.kill((set(actors()) - others).pop(), signal.SIGKILL)
    before = decided(out)
    until(lambda: decided(out) > before + 20, first)
    cluster.remove_node(cluster.workers[0], allow_graceful=False)
    before = decided(out)
    until(lambda: decided(out) > before + 20, first)
    first.kill()
    first.communicate()
    assert 60 < len(results(out)) < len(undisturbed)
    second = start(linear, "--executor", "ray", "--resume")
    _, told = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, told
    assert results(out) == undisturbed
    end = time.monotonic() + PATIENCE
    while set(actors()) - others:
        assert time.monotonic() < end, "the actors outlive their driver"
        time.sleep(0.1)
