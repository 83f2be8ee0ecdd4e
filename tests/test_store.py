"""One result per (sample, eps), whole or not at all, and only for the run it belongs to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certify.disk import write_atomically
from certify.errors import DiskError, UsageError
from certify.options import parse_eps
from certify.store import Row, Store
from certify.verdict import Outcome, Verdict, Witness

RADII = parse_eps("1/255,2/255")
SAMPLES = [(40, 0), (41, 1), (42, 2)]
PRINT = {"model": "abc", "eps": ["1/255", "2/255"]}


def falsified(value: float = 0.25) -> Outcome:
    witness = Witness(np.full((2, 2), value, dtype=np.float32), np.array([1.0, 2.0, 3.0]), 1)
    return Outcome(Verdict.FALSIFIED, "attack", upper=-0.5, witness=witness, seconds={"attack": 0.5})


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    with Store.create(tmp_path / "a" / "run", PRINT, SAMPLES) as store:
        store.record_clean({0: 0, 1: 1}, [Row(2, r, falsified()) for r in RADII])
        store.record([Row(0, RADII[0], Outcome(Verdict.VERIFIED, "CROWN", lower=0.125))])
    with Store.resume(tmp_path / "a" / "run", PRINT, SAMPLES) as store:
        assert store.predictions() == {0: 0, 1: 1}
        assert store.finished(RADII[0]) == {0, 2}
        assert store.finished(RADII[1]) == {2}
        found = list(store.results(RADII))
    assert [(r.id, str(r.eps), r.outcome.verdict) for r in found] == [
        (40, "1/255", "verified"),
        (42, "1/255", "falsified"),
        (42, "2/255", "falsified"),
    ]
    assert found[0].outcome == Outcome(Verdict.VERIFIED, "CROWN", lower=0.125)
    witness = found[1].outcome.witness
    assert witness is not None
    assert witness.x.dtype == np.float32
    assert (witness.x == 0.25).all()
    assert witness.snapped == 1
    assert found[1].witness_file == "witnesses/42-1_255.npz"


def test_a_second_result_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    with Store.create(tmp_path / "run", PRINT, SAMPLES) as store:
        store.record([Row(0, RADII[0], Outcome(Verdict.VERIFIED, "CROWN"))])
        with pytest.raises(DiskError, match="second result"):
            store.record([Row(1, RADII[0], falsified()), Row(0, RADII[0], Outcome(Verdict.UNKNOWN, "IBP"))])
        assert store.outcomes(0, RADII) == {RADII[0]: Outcome(Verdict.VERIFIED, "CROWN")}
        assert store.outcomes(1, RADII) == {}, "a batch is committed whole or not at all"


def test_a_revised_result_takes_the_place_of_the_first_or_nothing_changes(tmp_path: Path) -> None:
    unknown, proof = Outcome(Verdict.UNKNOWN, "IBP", "open"), Outcome(Verdict.VERIFIED, "CROWN", lower=0.5)
    with Store.create(tmp_path / "run", PRINT, SAMPLES) as store:
        store.record([Row(0, RADII[0], unknown), Row(1, RADII[1], unknown)])
        with pytest.raises(DiskError, match="second result"):
            store.record([Row(1, RADII[1], proof)], revised=[Row(0, RADII[0], proof)])
        assert store.outcomes(0, RADII) == {RADII[0]: unknown}
        store.record([Row(0, RADII[1], proof)], revised=[Row(0, RADII[0], proof)])
        assert store.outcomes(0, RADII) == {RADII[0]: proof, RADII[1]: proof}
        assert list(store.outcomes(0, RADII[::-1])) == [RADII[1], RADII[0]]
        assert store.outcomes(1, RADII) == {RADII[1]: unknown}


def test_memory_and_disk_hold_the_same(tmp_path: Path) -> None:
    rows = [Row(0, RADII[0], falsified()), Row(1, RADII[0], Outcome(Verdict.ERROR, "clean", "broken"))]
    with Store.in_memory(PRINT, SAMPLES) as memory, Store.create(tmp_path / "run", PRINT, SAMPLES) as disk:
        pairs = []
        for store in (memory, disk):
            store.record(rows, [(0, "1/255", "an alarm")])
            pairs.append([(r.id, r.outcome.verdict, r.outcome.lower, r.outcome.reason) for r in store.results(RADII)])
            assert store.alarms() == ["an alarm"]
            assert store.outcomes(0, RADII)[RADII[0]].witness is not None
    assert pairs[0] == pairs[1]


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Store.create(out, PRINT, SAMPLES).close()
    before = (out / "results.sqlite").read_bytes()
    with pytest.raises(UsageError, match="exists already; add --resume"):
        Store.create(out, PRINT, SAMPLES)
    assert (out / "results.sqlite").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("all my work")
    with pytest.raises(UsageError, match="give another folder"):
        Store.create(tmp_path / "other", PRINT, SAMPLES)
    assert os.listdir(tmp_path / "other") == ["thesis.tex"]


def test_resuming_something_else_names_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Store.create(out, PRINT, SAMPLES).close()
    with pytest.raises(UsageError, match="model was 'abc' and is 'xyz'"):
        Store.resume(out, PRINT | {"model": "xyz"}, SAMPLES)
    with pytest.raises(UsageError, match="samples differ"):
        Store.resume(out, PRINT, SAMPLES[:2])
    with pytest.raises(UsageError, match="holds no run"):
        Store.resume(tmp_path, PRINT, SAMPLES)


def test_a_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Store.create(out, PRINT, SAMPLES).close()
    (out / "results.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(DiskError, match="cannot be written or read"):
        Store.resume(out, PRINT, SAMPLES)


def test_two_writers_are_kept_apart(tmp_path: Path) -> None:
    with (
        Store.create(tmp_path / "run", PRINT, SAMPLES),
        pytest.raises(UsageError, match="another certify process"),
    ):
        Store.resume(tmp_path / "run", PRINT, SAMPLES)
    Store.resume(tmp_path / "run", PRINT, SAMPLES).close()


def test_a_failed_beginning_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="second result"):
        Store.create(tmp_path / "new" / "run", PRINT, [(1, 0), (1, 0)])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot be written"):
        Store.create(tmp_path / "file" / "run", PRINT, SAMPLES)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "manifest.json"
    write_atomically(target, b"old")
    assert stat.S_IMODE(target.stat().st_mode) & 0o600 == 0o600

    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskError, match="No space left on device"):
        write_atomically(target, b"new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_full_database_names_its_reason_and_loses_nothing(tmp_path: Path) -> None:
    """SQLite rolls back by itself when the disk is full; a second rollback must not hide that."""
    out = tmp_path / "run"
    with Store.create(out, PRINT, SAMPLES) as store:
        store.record([Row(0, RADII[0], Outcome(Verdict.VERIFIED, "IBP", lower=1.0))])
        pages = store._query("PRAGMA page_count")[0][0]
        store._query(f"PRAGMA max_page_count = {pages}")
        long = Outcome(Verdict.UNKNOWN, "IBP", "why " * 10_000)
        with pytest.raises(DiskError, match="full; what was committed before is kept"):
            store.record([Row(1, RADII[0], long)])
        assert store.finished(RADII[0]) == {0}
    with Store.resume(out, PRINT, SAMPLES) as store:
        store.record([Row(1, RADII[0], long)])
        assert store.finished(RADII[0]) == {0, 1}


@given(
    lower=st.floats(allow_nan=False),
    upper=st.floats(allow_nan=False),
    reason=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
def test_any_numbers_and_texts_survive(lower: float, upper: float, reason: str) -> None:
    outcome = Outcome(Verdict.UNKNOWN, "IBP", reason, lower, upper, seconds={"IBP": 0.1})
    with Store.in_memory(PRINT, SAMPLES) as store:
        store.record([Row(0, RADII[0], outcome)])
        assert store.outcomes(0, RADII)[RADII[0]] == outcome


def test_what_a_run_says_about_itself_is_replaced_and_may_be_missing(tmp_path: Path) -> None:
    with Store.create(tmp_path / "run", PRINT, SAMPLES) as store:
        assert store.about() == {}
        store.describe({"command": {"--eps": "<b>"}})
        store.describe({"seconds": 1.5})
        assert store.about() == {"seconds": 1.5}


def test_the_clean_input_lies_beside_a_witness_that_differs_from_it(tmp_path: Path) -> None:
    clean = np.arange(8, dtype=np.float32).reshape(2, 4)
    eps = parse_eps("1")[0]
    with Store.create(tmp_path / "run", PRINT, [(7, 0), (8, 1)]) as store:
        store.keep_inputs(clean)
        same, other = Witness(clean[0], np.zeros(2)), Witness(clean[1] + 1, np.zeros(2))
        rows = [Row(p, eps, Outcome(Verdict.FALSIFIED, "attack", witness=w)) for p, w in enumerate((same, other))]
        store.record(rows)
    with np.load(tmp_path / "run" / "witnesses" / "7-1.npz") as arrays:
        assert "clean" not in arrays
    with np.load(tmp_path / "run" / "witnesses" / "8-1.npz") as arrays:
        np.testing.assert_array_equal(arrays["clean"], clean[1])
