"""Bisection over eps comes to what deciding every (sample, eps) comes to, with O(log n) decisions a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certify.api import Output, Preprocessing, execute, make_job
from certify.attacks.replay import inside
from certify.curve import Bisection, bisect, one_sided
from certify.options import parse_eps
from certify.property import Ball, Property
from certify.report.result import Report
from certify.runner import Job, Progress
from certify.settings import Settings
from certify.verdict import Outcome, Verdict

EPS = "0:0.5:0.05"


def job(folder: Path, eps: str = EPS) -> Job:
    from certify.frontends.data import load_data
    from certify.frontends.onnx_import import load_model

    model = load_model(str(folder / "net.onnx"))
    return make_job(
        model, load_data(str(folder / "data.npz")), parse_eps(eps), "linf", Preprocessing(), Settings(device="cpu")
    )


def go(made: Job, watch: Callable[[Progress], None] | None = None, **output: object) -> Report:
    return execute(made, Preprocessing(), Output(order=bisect, **output), watch)


def verdicts(report: Report) -> dict[tuple[int, str], str]:
    return {(r.id, r.eps.key): r.outcome.verdict.value for r in report.results}


def asked(prop: Property) -> float:
    assert isinstance(prop.ball, Ball)
    return float(prop.ball.eps)


def truth(state: Bisection, low: int, high: int, failing: frozenset[int] = frozenset()) -> list[int]:
    """Drive the bisection of a sample that is proved up to `low` and falls from `high` on; what was asked."""
    found = []
    while (asked := state.next()) is not None:
        k, side = asked
        if side:
            assert state.tried
            assert side * k > max(side * j for j in state.tried if state.low < j < state.high)
        found.append(k)
        if k <= low:
            state.low = k
        elif k >= high:
            state.high = k
        else:
            state.tried[k] = Outcome(Verdict.ERROR if k in failing else Verdict.UNKNOWN, "x")
    return found


@given(st.integers(1, 64), st.data())
def test_a_bisection_finds_both_ends_in_few_questions(count: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(-1, count - 1))
    high = data.draw(st.integers(low + 1, count))
    state = Bisection(count)
    found = truth(state, low, high)
    assert len(set(found)) == len(found)
    assert (state.low, state.high) == (low, high)
    assert len(found) <= (1 if high == low + 1 else 2) * math.ceil(math.log2(count + 1))
    open_now = set(range(low + 1, high))
    assert open_now == set(state.tried) | {k for k, _, _ in state.between()}
    assert all(a < k < b and {a, b} <= set(state.tried) for k, a, b in state.between())


def test_every_verdict_is_that_of_a_run_over_all_radii(linear: Path, exact: ModuleType) -> None:
    made = job(linear)
    exact.hooks.calls.clear()
    report = go(made)
    decisions = sum(exact.hooks.calls)
    assert verdicts(report) == verdicts(execute(made, Preprocessing(), Output()))
    assert report.complete
    assert not report.alarms
    assert decisions <= 22 * math.ceil(math.log2(len(made.radii) + 1)), "each of 22 samples at O(log n) of 11 radii"


def test_what_follows_says_from_where(linear: Path, exact: ModuleType) -> None:
    x = np.load(linear / "data.npz")["x"]
    report = go(job(linear))
    by_sample: dict[int, list] = {}
    for r in report.results:
        by_sample.setdefault(r.id, []).append(r)
    for number, rows in by_sample.items():
        for r in rows:
            if r.outcome.reason.startswith("the proof of eps"):
                assert r.outcome.verdict is Verdict.VERIFIED
                (origin,) = [o for o in rows if f"the proof of eps {o.eps}" == r.outcome.reason]
                assert origin.eps > r.eps
                assert origin.outcome.verdict is Verdict.VERIFIED
                assert r.outcome.lower == origin.outcome.lower
            if r.outcome.witness is not None:
                away = np.abs(r.outcome.witness.x.astype(np.float64) - x[number].astype(np.float64)).max()
                assert away <= float(r.eps), "a witness lies in the ball that it falsifies"


def test_undecided_radii_between_undecided_ones_are_not_tried(linear: Path, exact: ModuleType) -> None:
    """Unknown from 0.1 to 0.3: both ends of that are found, and what lies between is said to be not tried."""

    def spoil(properties: Sequence[Property], outcomes: list[Outcome]) -> list[Outcome]:
        return [
            Outcome(Verdict.UNKNOWN, "tired", "timeout", lower=-1.0, upper=1.0) if 0.09 < asked(p) < 0.31 else o
            for p, o in zip(properties, outcomes, strict=True)
        ]

    exact.hooks.spoil = spoil
    report = go(job(linear))
    reasons = {r.outcome.reason for r in report.results if r.outcome.verdict is Verdict.UNKNOWN}
    assert "timeout" in reasons
    assert any(reason.startswith("not tried: undecided at eps 0.1 and at eps ") for reason in reasons)
    for eps in ("0.05", "0.35", "0.5"):
        assert report.at(eps).unknown == 0
    counts = [(b.certified, b.attacked) for b in report.brackets.values()]
    assert counts == sorted(counts, reverse=True)


def test_below_an_undecided_ball_nothing_is_attacked_and_above_nothing_is_proved(
    linear: Path, exact: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[bytes, dict[float, tuple[str, bool]]] = {}
    decide = exact.decide

    def tired(model: Any, properties: Sequence[Property], settings: Settings, **limits: Any) -> list[Outcome]:
        for p in properties:
            assert p.ball is not None
            given.setdefault(p.ball.center.tobytes(), {})[asked(p)] = settings.method, settings.attack
        found = decide(model, properties, settings, **limits)
        return [
            Outcome(Verdict.UNKNOWN, "tired", lower=-1.0, upper=1.0)
            if asked(p) >= 0.25 and o.verdict is Verdict.VERIFIED
            else o
            for p, o in zip(properties, found, strict=True)
        ]

    monkeypatch.setattr(exact, "decide", tired)
    made = replace(job(linear), settings=Settings(method="crown", device="cpu"))
    report = go(made)
    undecided = [r.id for r in report.results if r.eps.key == "1/4" and r.outcome.verdict is Verdict.UNKNOWN]
    assert undecided
    for number in undecided:
        ways = given[made.data.x[number].astype(np.float64).tobytes()]
        assert ways.pop(0.25) == ("crown", True)
        assert {how for eps, how in ways.items() if eps < 0.25} == {("crown", False)}
        assert {how for eps, how in ways.items() if eps > 0.25} <= {("attack", True)}


def test_an_error_spares_nothing() -> None:
    """Regression: after an error nothing was attacked at smaller radii, as if an attack had failed there."""
    state = Bisection(7, tried={3: Outcome(Verdict.ERROR, "decide")})
    assert state.next() == (1, 0)
    state.low = 2
    assert state.next() == (5, 0)
    state.tried[5] = Outcome(Verdict.UNKNOWN, "CROWN")
    assert state.next() == (6, 1)


def test_complete_search_is_tried_again_above(linear: Path) -> None:
    for method in ("auto", "mip"):
        assert one_sided(Settings(method=method), 1) == Settings(method=method)
    assert one_sided(Settings(method="attack"), -1) == Settings(method="attack")
    assert one_sided(Settings(method="crown"), 0) == Settings(method="crown")


def test_a_witness_in_a_proved_ball_is_an_alarm(linear: Path, exact: ModuleType) -> None:
    """A liar proves every ball of the middle radius and below: what falls above must give it away."""

    def spoil(properties: Sequence[Property], outcomes: list[Outcome]) -> list[Outcome]:
        return [
            Outcome(Verdict.VERIFIED, "liar", lower=1.0) if asked(p) == 0.25 else o
            for p, o in zip(properties, outcomes, strict=True)
        ]

    honest = verdicts(go(job(linear)))
    exact.hooks.spoil = spoil
    report = go(job(linear))
    cheated = {k for (k, eps), v in honest.items() if eps == "1/4" and v == "falsified"} - {5, 17}
    assert cheated
    assert report.alarms
    assert all("proved safe" in alarm for alarm in report.alarms)
    alarmed = {int(a.split()[1].rstrip(",")) for a in report.alarms}
    assert alarmed <= cheated


def test_a_curve_cut_short_is_resumed_without_loss_or_repetition(
    linear: Path, exact: ModuleType, tmp_path: Path
) -> None:
    made = job(linear)
    whole = verdicts(go(made))
    once = sum(exact.hooks.calls)
    seen = 0

    def watch(progress: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen % 9 == 0:
            raise KeyboardInterrupt

    resume = False
    for _ in range(200):
        try:
            report = go(made, watch, out=tmp_path / "run", resume=resume)
            break
        except KeyboardInterrupt:
            resume = True
    assert seen > 18
    assert verdicts(report) == whole
    assert sum(exact.hooks.calls) - once <= once, "nothing that was committed was decided again"


def test_a_budget_leaves_samples_for_later(linear: Path, exact: ModuleType, tmp_path: Path) -> None:
    made = job(linear)
    assert not go(made, out=tmp_path / "run", budget=1e-6).complete
    report = go(made, out=tmp_path / "run", resume=True)
    assert report.complete
    assert verdicts(report) == verdicts(go(made))


def test_the_certificate_of_the_largest_proved_ball_is_that_of_the_smaller(linear: Path, tmp_path: Path) -> None:
    """With the real pipeline: files on disk, one for each proof, and the checker accepts them all."""
    from certify.check.command import Request, run

    made = replace(job(linear, "0.05:0.2:0.05"), settings=Settings(certificates=True, device="cpu", method="crown"))
    report = go(made, out=tmp_path / "run")
    radii = {r.key: float(r) for r in made.radii}
    files: dict[str, list[float]] = {}
    for r in report.results:
        if r.outcome.verdict is Verdict.VERIFIED:
            assert r.certificate_file is not None
            assert (tmp_path / "run" / r.certificate_file).is_file()
            files.setdefault(r.certificate_file, []).append(radii[r.eps.key])
    assert any(len(served) > 1 for served in files.values())
    for name, served in files.items():
        written = name.rsplit("-", 1)[1].removesuffix(".npz").replace("_", "/")
        assert max(served) == radii[written], "the file is that of the largest ball it proves"
    assert len(list((tmp_path / "run" / "certificates").iterdir())) == len(files)
    assert run(Request((str(tmp_path / "run"),))) == 0


def test_witnesses_on_disk_lie_in_their_balls(linear: Path, tmp_path: Path) -> None:
    """With the real pipeline, and in L2: the moved witness is inside the smaller ball, decided exactly."""
    from certify.runner import property_of

    made = replace(job(linear, "0.1:0.6:0.1"), norm="l2")
    report = go(made, out=tmp_path / "run", witnesses=True)
    assert any(r.outcome.reason.startswith("the witness of eps") for r in report.results)
    for position in range(len(made.data.y)):
        for r in report.results:
            if r.id == position and r.outcome.witness is not None and r.outcome.stage != "clean":
                (case,) = property_of(made, position, r.eps, {}).cases
                assert inside(r.outcome.witness.x.astype(np.float32), case.inputs)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_verdict(linear: Path, workers: int) -> None:
    made = replace(job(linear, "0:0.4:0.1"), settings=Settings(method="crown", device="cpu"))
    assert verdicts(go(made, workers=workers)) == verdicts(execute(made, Preprocessing(), Output()))
