"""Shards are a partition; put together they are what one run would have been; what does not fit together is refused."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certify.api import Output, Preprocessing, execute, make_job
from certify.errors import NoSamples, UsageError
from certify.merge import Merged, merge
from certify.options import parse_eps
from certify.report.result import Report
from certify.runner import Job
from certify.settings import Settings
from certify.shards import Shard
from certify.verdict import Outcome, Verdict

EPS = "0.05,0.2"


@pytest.fixture
def made(linear: Path, exact: ModuleType) -> Job:
    from certify.frontends.data import load_data
    from certify.frontends.onnx_import import load_model

    data = load_data(str(linear / "data.npz"))
    return make_job(load_model(str(linear / "net.onnx")), data, parse_eps(EPS), "linf", Preprocessing(), Settings())


def decide(made: Job, out: Path, shard: str | None = None, **output: object) -> Report:
    part = None if shard is None else Shard.parse(shard)
    return execute(made, Preprocessing(), Output(out, shard=part, **output))


def shards(made: Job, folder: Path, *names: str) -> list[Path]:
    """The folders of some shards, which are decided."""
    roots = [Shard.parse(name).folder(folder) for name in names]
    for name, root in zip(names, roots, strict=True):
        decide(made, root, name)
    return roots


def table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "results.csv").drop(columns="seconds")


@given(st.integers(1, 40), st.integers(1, 40))
def test_shards_are_a_partition(n: int, count: int) -> None:
    from certify.frontends.data import Dataset

    whole = Dataset("d", np.zeros((n, 1), np.float32), np.arange(n), np.arange(n) + 7, (), "", (0.0, 1.0))
    parts = [Shard(k + 1, count).part(whole) for k in range(min(n, count))]
    assert sorted(i for part in parts for i in part.ids) == sorted(whole.ids)
    assert all((part.ids == part.y + 7).all() for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if count > n:
        with pytest.raises(NoSamples, match=f"shard {count}/{count}"):
            Shard(count, count).part(whole)


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", "1/4/2"])
def test_a_shard_is_counted_from_one(text: str) -> None:
    with pytest.raises(UsageError, match="such as 1/4"):
        Shard.parse(text)


def test_merged_shards_are_the_run_that_was_not_divided(made: Job, exact: ModuleType, tmp_path: Path) -> None:
    decide(made, tmp_path / "whole")
    roots = shards(made, tmp_path / "parts", "1/3", "2/3", "3/3")
    assert [root.name for root in roots] == ["shard-1-of-3", "shard-2-of-3", "shard-3-of-3"]
    merged = merge(tmp_path / "out", [roots[2], roots[0], roots[1], roots[0]])
    assert not merged.missing
    assert merged.report.complete
    pd.testing.assert_frame_equal(table(tmp_path / "out"), table(tmp_path / "whole"))
    files = sorted(os.listdir(tmp_path / "whole" / "witnesses"))
    assert sorted(os.listdir(tmp_path / "out" / "witnesses")) == files
    for name in files:
        with (
            np.load(tmp_path / "out" / "witnesses" / name) as one,
            np.load(tmp_path / "whole" / "witnesses" / name) as other,
        ):
            assert set(one) == set(other)
            assert all((one[key] == other[key]).all() for key in one)
    assert sorted(os.listdir(tmp_path)) == sorted(["data.npz", "net.onnx", "out", "parts", "whole"]), "nothing is left"
    exact.hooks.calls.clear()
    again = decide(made, tmp_path / "out", resume=True)
    assert exact.hooks.calls == [], "as if it had been one run, it may be resumed"
    assert again.complete


def test_what_is_missing_is_named_and_can_be_decided_later(made: Job, exact: ModuleType, tmp_path: Path) -> None:
    roots = shards(made, tmp_path / "parts", "1/3", "3/3")
    merged = merge(tmp_path / "out", roots)
    assert {str(r): ids for r, ids in merged.missing.items()} == dict.fromkeys(("0.05", "0.2"), tuple(range(1, 24, 3)))
    assert not merged.report.complete
    assert merged.report.at("0.2").pending == 8
    exact.hooks.calls.clear()
    decide(made, tmp_path / "out", resume=True)
    assert sum(exact.hooks.calls) == 2 * sum(1 for i in range(1, 24, 3) if i not in (5, 17))
    decide(made, tmp_path / "whole")
    pd.testing.assert_frame_equal(table(tmp_path / "out"), table(tmp_path / "whole"))


def test_overlapping_shards_agree_or_complete_each_other(made: Job, exact: ModuleType, tmp_path: Path) -> None:
    (first,) = shards(made, tmp_path / "parts", "1/2")

    def tired(properties: object, outcomes: list[Outcome]) -> list[Outcome]:
        return [Outcome(Verdict.UNKNOWN, "tired", "timeout") for _ in outcomes]

    exact.hooks.spoil = tired
    rest = shards(made, tmp_path / "parts", "1/3", "2/3", "3/3")
    exact.hooks.spoil = None
    (second,) = shards(made, tmp_path / "parts", "2/2")
    merged = merge(tmp_path / "out", [*rest, first, second])
    assert not merged.missing
    assert not merged.report.alarms
    decide(made, tmp_path / "whole")
    pd.testing.assert_frame_equal(table(tmp_path / "out"), table(tmp_path / "whole"))


def lie(properties: object, outcomes: list[Outcome]) -> list[Outcome]:
    return [Outcome(Verdict.VERIFIED, "liar", lower=1.0) for _ in outcomes]


def forget(root: Path, eps: str) -> None:
    with sqlite3.connect(root / "results.sqlite") as database:
        database.execute("DELETE FROM results WHERE eps = ? AND stage != 'clean'", (eps,))


@pytest.mark.parametrize("larger", [False, True])
def test_a_proof_here_and_a_witness_there_is_an_alarm(
    made: Job, exact: ModuleType, tmp_path: Path, larger: bool
) -> None:
    """At the same eps, or the proof at a larger one."""
    good = decide(made, tmp_path / "good")
    fallen = {r.id for r in good.results if r.outcome.stage == "exact" and r.outcome.verdict == "falsified"}
    exact.hooks.spoil = lie
    decide(made, tmp_path / "lies")
    exact.hooks.spoil = None
    eps = "0.05" if larger else "0.2"
    if larger:
        fallen = {r.id for r in good.results if r.eps.text == eps and r.id in fallen and r.outcome.witness is not None}
        forget(tmp_path / "good", "1/5")
        forget(tmp_path / "lies", "1/20")
    assert fallen
    merged = merge(tmp_path / "out", [tmp_path / "lies", tmp_path / "good"])
    verdicts = {(r.id, r.eps.text): r.outcome.verdict for r in merged.report.results}
    for sample in fallen:
        assert verdicts[sample, "0.2"] == Verdict.ERROR
        assert any(f"sample {sample}, eps 0.2" in alarm for alarm in merged.report.alarms)
    assert len(merged.report.alarms) >= len(fallen)
    again = merge(tmp_path / "again", [tmp_path / "out", tmp_path / "lies", tmp_path / "good"])
    kept = {(r.id, r.eps.text): r.outcome.verdict for r in again.report.results}
    assert {k: v for k, v in kept.items() if v == Verdict.ERROR} == {
        k: v for k, v in verdicts.items() if v == Verdict.ERROR
    }, "what was alarmed about once stays an error"


def test_what_does_not_fit_together_is_refused_by_name(made: Job, exact: ModuleType, tmp_path: Path) -> None:
    (first,) = shards(made, tmp_path / "parts", "1/2")
    others = {
        "eps was": replace(made, radii=parse_eps("0.1")),
        "timeout was 60.0 and is 7.0": replace(made, settings=Settings(timeout=7.0)),
        "data was": replace(made, data=replace(made.data, y=made.data.y[::-1].copy())),
        "model was": replace(made, model=replace(made.model, sha256="another")),
        "norm was 'linf' and is 'l2'": replace(made, norm="l2"),
    }
    for number, (message, job) in enumerate(others.items()):
        part = Shard(2, 2)
        with pytest.raises(UsageError, match=message):
            decide(job, part.folder(tmp_path / "parts"), "2/2")
        assert not part.folder(tmp_path / "parts").exists(), "refused before anything is written"
        elsewhere = tmp_path / str(number) / "shard-2-of-2"
        if job.norm == "linf":
            decide(job, elsewhere, "2/2")
            with pytest.raises(UsageError, match=message):
                merge(tmp_path / "out", [first, elsewhere])
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_merged(made: Job, exact: ModuleType, tmp_path: Path) -> None:
    (first,) = shards(made, tmp_path / "parts", "1/2")
    with pytest.raises(UsageError, match="holds no run"):
        merge(tmp_path / "out", [first, tmp_path])
    with pytest.raises(UsageError, match="cannot be one of the shards"):
        merge(first, [first])
    with pytest.raises(UsageError, match="exists already"):
        merge(tmp_path / "parts", [first])
    from certify.store import Store

    with Store.open(first), pytest.raises(UsageError, match="another certify process"):
        merge(tmp_path / "out", [first])
    with pytest.raises(UsageError, match="holds a run that is no shard"):
        decide(made, first / "shard-2-of-2", "2/2")
    assert sorted(os.listdir(tmp_path)) == ["data.npz", "net.onnx", "parts"]
    assert isinstance(merge(tmp_path / "out", [first]), Merged)


def test_a_merge_that_fails_leaves_nothing(
    made: Job, exact: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = shards(made, tmp_path / "parts", "1/2", "2/2")
    witness = next((roots[1] / "witnesses").iterdir())
    content = witness.read_bytes()
    witness.unlink()
    with pytest.raises(UsageError, match="cannot be read back"):
        merge(tmp_path / "out", roots)
    assert sorted(os.listdir(tmp_path)) == ["data.npz", "net.onnx", "parts"]
    witness.write_bytes(content)
    (tmp_path / ".out.merging").mkdir()  # of one that was killed
    (tmp_path / ".out.merging" / "half").write_text("")
    assert merge(tmp_path / "out", roots).report.complete
    assert sorted(os.listdir(tmp_path)) == ["data.npz", "net.onnx", "out", "parts"]
