"""A run's folder read back: what was written, also in the middle of a run and after a kill; never written to."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from pathlib import Path

import numpy as np
import pytest
from run_folders import write_run

from certify.errors import DiskError, UsageError
from certify.options import parse_eps
from certify.report.folder import LOCKS, is_running, read_folder, read_outline, read_witness
from certify.run_folder import DATABASE
from certify.store import Store
from certify.verdict import Verdict


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_what_was_written_is_read_and_nothing_is_touched(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", n=40, left=7)
    before = contents(root)
    folder = read_folder(root)
    assert contents(root) == before
    assert len(folder.samples) == folder.report.n == 40
    assert len(folder.report.results) == 2 * 33
    assert not folder.report.complete
    for eps, b in folder.report.brackets.items():
        counts = (b.misclassified, b.falsified, b.certified, b.unknown, b.errors, b.pending)
        assert counts == ((4, 4, 22, 3, 0, 7) if eps == parse_eps("0.1")[0] else (4, 8, 18, 3, 0, 7))
    assert folder.samples[0].id == 100
    assert folder.samples[39].predicted is None
    outline = read_outline(root)
    assert outline.brackets == tuple(folder.report.brackets.values())
    assert (outline.done, outline.total) == (66, 80)


def test_a_witness_lies_where_its_distance_says(tmp_path: Path) -> None:
    folder = read_folder(write_run(tmp_path / "run"))
    for result in folder.report.results:
        if result.witness_file:
            shown = read_witness(folder.root, result)
            away = 0.0 if result.outcome.stage == "clean" else float(result.eps)
            assert shown.distance("linf") == pytest.approx(away, abs=1e-6)
            assert shown.distance("l1") == pytest.approx(64 * away, abs=1e-4)
            assert shown.distance("l2") == pytest.approx(8 * away, abs=1e-5)


def test_a_witness_file_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = read_folder(write_run(tmp_path / "run"))
    result = next(r for r in folder.report.results if r.outcome.stage == "attack")
    assert result.witness_file
    path = folder.root / result.witness_file
    path.rename(tmp_path / "elsewhere.npz")
    path.symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(DiskError, match="outside"):
        read_witness(folder.root, result)


def test_pickles_in_a_witness_are_not_loaded(tmp_path: Path) -> None:
    folder = read_folder(write_run(tmp_path / "run"))
    result = next(r for r in folder.report.results if r.outcome.stage == "attack")
    assert result.witness_file
    np.savez(folder.root / result.witness_file, x=np.array([object()], dtype=object), y=np.zeros(2))
    with pytest.raises(DiskError, match="cannot be read"):
        read_witness(folder.root, result)


def test_a_run_of_an_older_version_is_read_from_its_manifest_or_its_fingerprint(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run")
    with sqlite3.connect(root / DATABASE) as database:
        database.execute("DELETE FROM meta WHERE key = 'about'")
    assert read_folder(root).report.model == "unknown model"
    assert [r.text for r in read_folder(root).report.radii] == ["1/10", "1/5"]
    manifest = {"model": {"source": "m.onnx", "sha256": "1"}, "eps": ["0.1", "0.2"], "seconds": {"wall": 3.0}}
    (root / "manifest.json").write_text(json.dumps(manifest))
    report = read_folder(root).report
    assert (report.model, report.seconds, [r.text for r in report.radii]) == ("m.onnx", 3.0, ["0.1", "0.2"])


def test_the_half_written_commit_of_a_killed_run_is_undone_in_a_copy(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run")
    whole = read_folder(root)
    child = os.fork()
    if child == 0:  # dies with pages written that its journal would take back
        database = sqlite3.connect(root / DATABASE, isolation_level=None)
        database.execute("PRAGMA cache_size = 5")
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE results SET verdict = 'verified', reason = hex(randomblob(4000))")
        os._exit(1)
    os.waitpid(child, 0)
    before = contents(root)
    assert f"{DATABASE}-journal" in before
    folder = read_folder(root)
    assert contents(root) == before
    assert [r.outcome for r in folder.report.results] == [r.outcome for r in whole.report.results]


def test_a_run_is_running_while_its_store_is_open(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", left=5)
    assert is_running(root) is not LOCKS.exists(), "where the system tells no locks, the time of the last commit counts"
    os.utime(root / DATABASE, (1, 1))
    assert not is_running(root)
    if not LOCKS.exists():
        pytest.skip("the system tells no locks")
    store = Store.open(root)
    with store:
        assert is_running(root)
        assert read_folder(root).running
        assert read_outline(root).running
    assert not read_folder(root).running


def test_reading_works_where_nothing_may_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    root = write_run(tmp_path / "run")
    for path in (root, root / DATABASE):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    assert read_folder(root).report.n == 40


def test_what_is_no_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        read_folder(tmp_path)
    (tmp_path / DATABASE).write_text("no database")
    with pytest.raises(DiskError, match="not a database"):
        read_folder(tmp_path)
    other = write_run(tmp_path / "other")
    with sqlite3.connect(other / DATABASE) as database:
        database.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    with pytest.raises(UsageError, match="result format 1"):
        read_folder(other)
    damaged = write_run(tmp_path / "damaged")
    with sqlite3.connect(damaged / DATABASE) as database:
        database.execute("UPDATE results SET verdict = 'perhaps'")
    with pytest.raises(DiskError, match="damaged"):
        read_folder(damaged)
    for result in read_folder(write_run(tmp_path / "good")).report.results:
        assert (result.outcome.verdict is Verdict.FALSIFIED) == (result.witness_file is not None)
