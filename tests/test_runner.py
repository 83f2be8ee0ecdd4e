"""The runner on linear networks whose robustness is known exactly: nothing lost, nothing twice, alarms raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import certify
from certify.api import Output, Preprocessing, execute, make_job
from certify.errors import DataError, NoSamples, SoundnessError, UsageError
from certify.executors.base import Death
from certify.options import parse_eps
from certify.pieces import Piece
from certify.property import Box, Property
from certify.report.result import Report
from certify.runner import Job, Progress
from certify.settings import Settings
from certify.store import Store
from certify.verdict import Outcome, Verdict, Witness, examine


def job(folder: Path, exact: ModuleType, eps: str = "0.01,0.1") -> Job:
    from certify.frontends.data import load_data
    from certify.frontends.onnx_import import load_model

    model = load_model(str(folder / "net.onnx"))
    data = load_data(str(folder / "data.npz"))
    return make_job(model, data, parse_eps(eps), "linf", Preprocessing(), Settings())


def go(made: Job, **output: object) -> Report:
    return execute(made, Preprocessing(), Output(**output))


def verdicts(report: Report) -> dict[tuple[int, str], str]:
    return {(r.id, r.eps.text): r.outcome.verdict.value for r in report.results}


def test_every_sample_gets_its_exact_verdict(linear: Path, exact: ModuleType) -> None:
    made = job(linear, exact)
    report = go(made)
    stored = np.load(linear / "data.npz")
    import onnx
    from onnx import numpy_helper

    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(linear / "net.onnx").graph.initializer}
    weight, bias = tensors["W"].astype(np.float64), tensors["b"].astype(np.float64)
    assert len(report.results) == 48
    for r in report.results:
        x, eps = stored["x"][r.id].astype(np.float64), float(r.eps)
        low, high = np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1)
        slopes = weight[:, [r.label]] - np.delete(weight, r.label, axis=1)
        offsets = bias[r.label] - np.delete(bias, r.label)
        worst = np.min(np.sum(np.where(slopes > 0, low[:, None], high[:, None]) * slopes, axis=0) + offsets)
        assert r.outcome.verdict == ("verified" if worst > 0 else "falsified"), r
        assert (r.outcome.stage == "clean") == (r.id in (5, 17))
        if r.outcome.witness is not None:
            assert (np.abs(r.outcome.witness.x.astype(np.float64) - x) <= eps + 1e-15).all()
            assert int(np.argmax(r.outcome.witness.y)) != r.label
    small, large = (report.at(e) for e in ("0.01", "0.1"))
    assert small.misclassified == large.misclassified == 2
    assert small.certified >= large.certified
    assert small.attacked >= large.attacked


def test_misclassified_samples_carry_their_clean_input(linear: Path, exact: ModuleType) -> None:
    report = go(job(linear, exact, "0.1"))
    x = np.load(linear / "data.npz")["x"]
    for number in (5, 17):
        assert (report.witnesses()[number, "0.1"].x == x[number]).all()


def test_one_failing_sample_is_an_error_and_the_rest_goes_on(linear: Path, exact: ModuleType) -> None:
    made = job(linear, exact, "0.01")
    good = verdicts(go(made))
    bad = made.data.x[9].astype(np.float64)

    def spoil(properties: Sequence[Property], outcomes: list[Outcome]) -> list[Outcome]:
        if any(inside(bad, prop) for prop in properties):
            raise RuntimeError("solver fell over\nwith a long story")
        return outcomes

    exact.hooks.spoil = spoil
    report = go(made)
    found = verdicts(report)
    assert found[9, "0.01"] == "error"
    (reason,) = [r.outcome.reason for r in report.results if r.id == 9]
    assert reason == "RuntimeError: solver fell over"
    assert {**found, (9, "0.01"): good[9, "0.01"]} == good
    assert report.bracket.errors == 1
    assert 1 in exact.hooks.calls, "the failing batch was retried one by one"


def test_a_clean_prediction_that_is_not_finite_is_an_error(linear: Path, exact: ModuleType) -> None:
    from certify.attacks.replay import Replayer

    made = job(linear, exact, "0.1")
    original = Replayer.run

    def run(self: Replayer, x: np.ndarray) -> np.ndarray:
        y = original(self, x)
        y[(x == made.data.x[3]).all(axis=1)] = np.nan
        return y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replayer, "run", run)
        report = go(made)
    assert verdicts(report)[3, "0.1"] == "error"
    assert report.bracket.errors == 1


def inside(x: np.ndarray, prop: Property) -> bool:
    box = prop.cases[0].inputs
    assert isinstance(box, Box)
    return bool(((box.lower <= x) & (x <= box.upper)).all())


def wide(prop: Property) -> bool:
    """Is it a property of the larger radius, 0.4, and not of 0.2?"""
    box = prop.cases[0].inputs
    assert isinstance(box, Box)
    return float(np.max(box.upper - box.lower)) > 0.401


def spoiled(kind: str, properties: Sequence[Property], outcomes: list[Outcome]) -> list[Outcome]:
    """The same outcomes, with a soundness bug."""
    witness = Witness(np.zeros(4, dtype=np.float32), np.zeros(3))
    change = {
        "proof beside a witness": lambda o: replace(
            o, verdict=Verdict.VERIFIED, lower=1.0, upper=-1.0, witness=witness
        ),
        "proof beside a negative margin": lambda o: replace(o, verdict=Verdict.VERIFIED, lower=0.1, upper=-1e-9),
        "bound above a margin": lambda o: replace(o, verdict=Verdict.UNKNOWN, lower=0.5, upper=0.25, witness=None),
    }[kind]
    return [change(outcomes[0]), *outcomes[1:]]


@pytest.mark.parametrize("kind", ["proof beside a witness", "proof beside a negative margin", "bound above a margin"])
def test_a_contradiction_raises_the_alarm_and_certifies_nothing(linear: Path, exact: ModuleType, kind: str) -> None:
    exact.hooks.batch = 100
    exact.hooks.spoil = lambda properties, outcomes: spoiled(kind, properties, outcomes)
    report = go(job(linear, exact, "0.01"))
    assert len(report.alarms) == 1
    assert "sample 0, eps 0.01" in report.alarms[0]
    (first,) = [r for r in report.results if r.id == 0]
    assert first.outcome.verdict is Verdict.ERROR
    assert "soundness alarm" in first.outcome.reason


def test_verified_above_a_falsified_radius_is_an_alarm(linear: Path, exact: ModuleType) -> None:
    made = job(linear, exact, "0.2,0.4")
    fallen = [k for k, v in verdicts(go(made)).items() if v == "falsified" and k[1] == "0.2" and k[0] not in (5, 17)]
    assert fallen, "the case needs a sample that falls at 0.2"

    def spoil(properties: Sequence[Property], outcomes: list[Outcome]) -> list[Outcome]:
        return [
            Outcome(Verdict.VERIFIED, "liar", lower=1.0) if wide(p) else o
            for p, o in zip(properties, outcomes, strict=True)
        ]

    exact.hooks.spoil = spoil
    report = go(made)
    found = verdicts(report)
    for number, _ in fallen:
        assert found[number, "0.4"] == "error"
    assert len(report.alarms) == len(fallen)
    assert "falsified at the smaller eps 0.2" in report.alarms[0]


def test_a_witness_serves_every_larger_radius(linear: Path, exact: ModuleType) -> None:
    made = job(linear, exact, "0.2,0.4")
    before = verdicts(go(made))

    def spoil(properties: Sequence[Property], outcomes: list[Outcome]) -> list[Outcome]:
        return [
            Outcome(Verdict.UNKNOWN, "tired", lower=-9.0) if wide(p) else o
            for p, o in zip(properties, outcomes, strict=True)
        ]

    exact.hooks.spoil = spoil
    report = go(made)
    for (number, eps), verdict in verdicts(report).items():
        small = before[number, "0.2"]
        assert verdict == (small if eps == "0.2" or small == "falsified" else "unknown")


@pytest.mark.parametrize(
    ("outcome", "verdict", "alarm"),
    [
        (Outcome(Verdict.VERIFIED, "IBP", lower=0.1), "verified", False),
        (Outcome(Verdict.VERIFIED, "IBP", lower=0.1, upper=0.1 - 1e-7), "verified", False),
        (Outcome(Verdict.VERIFIED, "IBP", lower=float("nan")), "error", False),
        (Outcome(Verdict.UNKNOWN, "IBP", upper=float("nan")), "error", False),
        (Outcome(Verdict.FALSIFIED, "attack", upper=-1.0), "error", False),
        (Outcome(Verdict.VERIFIED, "IBP", lower=0.2, upper=0.1), "error", True),
        (Outcome(Verdict.UNKNOWN, "IBP", lower=0.2, upper=-0.1), "error", True),
    ],
)
def test_examine_fails_closed(outcome: Outcome, verdict: str, alarm: bool) -> None:
    examined, text = examine(outcome)
    assert (examined.verdict, bool(text)) == (verdict, alarm)


def test_a_run_cut_short_is_resumed_without_loss_or_repetition(linear: Path, exact: ModuleType, tmp_path: Path) -> None:
    made = job(linear, exact)
    whole = verdicts(go(made))
    seen = 0

    def watch(progress: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen % 3 == 0:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    resume = False
    for _ in range(30):
        try:
            report = execute(made, Preprocessing(), Output(out, resume), watch)
            break
        except KeyboardInterrupt:
            resume = True
    else:
        pytest.fail("every resumed run must get further")
    assert seen > 6
    assert verdicts(report) == whole
    decided = sum(exact.hooks.calls)
    assert decided == 2 * 44, f"{decided - 44} of 44 decisions: first the whole run, then the one in pieces, each once"


def test_a_budget_leaves_samples_for_later(linear: Path, exact: ModuleType, tmp_path: Path) -> None:
    made = job(linear, exact)
    report = go(made, out=tmp_path / "run", budget=1e-6)
    assert not report.complete
    assert report.at("0.1").pending > 0
    report = go(made, out=tmp_path / "run", resume=True)
    assert report.complete
    assert verdicts(report) == verdicts(go(made))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_ends_once_somebody_has_seen_enough(
    linear: Path, exact: ModuleType, crew: type[InTurn], tmp_path: Path, workers: int
) -> None:
    made = job(linear, exact)
    whole, out = verdicts(go(made)), tmp_path / "run"
    radius = made.radii[0]

    def enough(store: Store) -> bool:
        return len(store.verdicts(radius)) >= 10

    report = go(made, out=out, workers=workers, enough=enough)
    assert not report.complete
    assert 10 <= len(report.results) - report.at("0.1").misclassified < 16, "a batch more than what is enough at most"
    assert {k: whole[k] for k in verdicts(report)} == verdicts(report)
    before = sum(exact.hooks.calls)
    assert verdicts(go(made, out=out, resume=True, workers=workers, enough=enough)) == verdicts(report)
    assert sum(exact.hooks.calls) == before, "it is asked before anything is decided"
    report = go(made, out=out, resume=True, workers=workers, enough=lambda store: False)
    assert report.complete
    assert verdicts(report) == whole
    assert go(made, out=out, resume=True, enough=enough).complete, "nothing is left, whoever has seen enough"


def test_python_run_returns_a_report_and_writes_nothing(
    linear: Path, exact: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = linear / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    stored = np.load(linear / "data.npz")
    report = certify.run(linear / "net.onnx", (stored["x"], stored["y"]), eps="0.01")
    assert report.bracket.n == 24
    assert verdicts(report) == verdicts(certify.run(str(linear / "net.onnx"), str(linear / "data.npz"), eps=0.01))
    assert len(report.to_pandas()) == 24
    assert list(empty.iterdir()) == []
    with pytest.raises(AssertionError, match="certified"):
        report.assert_certified(1.0)


def test_arrays_live_in_the_range_that_the_model_states(linear: Path, exact: ModuleType) -> None:
    """Regression: balls around arrays were cut to [0, 1], which proved less than the model's range asks for."""
    import onnx

    stored = np.load(linear / "data.npz")
    model = onnx.load(linear / "net.onnx")
    onnx.helper.set_model_props(model, {"certify.input_range": "-1,2"})
    onnx.save(model, linear / "wide.onnx")
    for data in ((stored["x"], stored["y"]), str(linear / "data.npz")):
        report = certify.run(linear / "wide.onnx", data, eps="0.5")
        assert report.input_range == (-1.0, 2.0)
    assert certify.run(linear / "wide.onnx", (stored["x"], stored["y"]), "0.5", input_range=(0, 1)).input_range == (
        0,
        1,
    )


def test_a_run_is_not_resumed_with_another_normalisation(linear: Path, exact: ModuleType, tmp_path: Path) -> None:
    """Regression: a Model's prepended mean and std were not in the fingerprint, and results of both mixed."""
    from certify.frontends.onnx_import import load_model

    stored = np.load(linear / "data.npz")
    data = (stored["x"], stored["y"])
    nets = [load_model(str(linear / "net.onnx"), mean=mean, std=0.5) for mean in (0.0, 0.5)]
    certify.run(nets[0], data, eps="0.01", out=tmp_path / "run")
    certify.run(nets[0], data, eps="0.01", out=tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="network"):
        certify.run(nets[1], data, eps="0.01", out=tmp_path / "run", resume=True)


def test_python_run_raises_on_an_alarm(linear: Path, exact: ModuleType) -> None:
    exact.hooks.spoil = lambda p, o: spoiled("proof beside a witness", p, o)
    with pytest.raises(SoundnessError, match="a bug in certify"):
        certify.run(str(linear / "net.onnx"), str(linear / "data.npz"), eps="0.1")


def test_python_run_refuses_what_does_not_fit(linear: Path, exact: ModuleType) -> None:
    net = str(linear / "net.onnx")
    x, y = np.zeros((3, 4), dtype=np.float32), np.zeros(3, dtype=np.int64)
    with pytest.raises(DataError, match="label 3, the network has classes 0 to 2; are the labels counted from 1"):
        certify.run(net, (x, np.array([1, 2, 3])), eps=0.1)
    with pytest.raises(DataError, match="outside the input range"):
        certify.run(net, (x + 2, y), eps=0.1)
    with pytest.raises(DataError, match="NaN"):
        certify.run(net, (x * np.nan, y), eps=0.1)
    with pytest.raises(UsageError, match="norm 'l3'"):
        certify.run(net, (x, y), eps=0.1, norm="l3")
    with pytest.raises(NoSamples):
        certify.run(net, (x, y), eps=0.1, samples=0)
    with pytest.raises(UsageError, match="resume=True needs out="):
        certify.run(net, (x, y), eps=0.1, resume=True)
    with pytest.raises(UsageError, match="--data is missing"):
        certify.run(net, eps=0.1)


class InTurn:
    """Stands for Crew within this process; `deadly` positions kill whoever has them; last in first out.

    The laws of real processes are in executors/test_processes.py.
    """

    deadly: frozenset[int] = frozenset()
    given: list[tuple[int, ...]]
    rested: list[tuple[int, int]]

    def __init__(self, work: Callable[[Piece], object], count: int, cards: tuple[str, ...]) -> None:
        self.count, self._work, self._pieces = count, work, list[Piece]()
        self.together = count
        type(self).given, type(self).rested = [], []

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *error: object) -> None:
        self._pieces.clear()

    def hire(self, pieces: int) -> None:
        pass

    def rest(self) -> None:
        self.rested.append((sum(map(len, self.given)), self.working))

    @property
    def idle(self) -> bool:
        return len(self._pieces) < self.count

    @property
    def working(self) -> int:
        return len(self._pieces)

    def give(self, piece: Piece) -> None:
        self.given.append(piece.positions)
        self._pieces.append(piece)

    def take(self, seconds: float | None = None) -> tuple[Piece, object]:
        piece = self._pieces.pop()
        return piece, Death("it died") if self.deadly & set(piece.positions) else self._work(piece)


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> type[InTurn]:
    monkeypatch.setattr("certify.executors.processes.Crew", InTurn)
    monkeypatch.setattr(InTurn, "deadly", frozenset())
    return InTurn


@pytest.mark.parametrize("workers", [2, 3, 40])
def test_workers_change_no_verdict(linear: Path, exact: ModuleType, crew: type[InTurn], workers: int) -> None:
    made = job(linear, exact)
    whole = verdicts(go(made))
    exact.hooks.batch = 100
    assert verdicts(go(made, workers=workers)) == whole
    sizes = [len(positions) for positions in crew.given]
    assert sum(sizes) == 2 * 22
    assert max(sizes) == max(1, 22 // (4 * workers)), "the first batches are the largest, and of an equal share"
    exact.hooks.batch = 4
    assert verdicts(go(made, workers=workers)) == whole
    assert max(map(len, crew.given)) <= max(1, 4 // workers), "the processes share the memory of one batch"


@pytest.mark.parametrize("workers", [2, 50])
def test_idle_workers_help_others_once_no_sample_waits(
    linear: Path, exact: ModuleType, crew: type[InTurn], workers: int
) -> None:
    """22 samples at each of two radii: when all of a radius are given, who is idle may be taken by a long search."""
    go(job(linear, exact), workers=workers)
    assert {given for given, _ in crew.rested} == {22, 44}
    most = max(working for _, working in crew.rested)
    assert most == min(22, workers)
    assert (22, most) in crew.rested


def test_a_process_that_dies_is_an_error_for_the_sample_that_killed_it(
    linear: Path, exact: ModuleType, crew: type[InTurn], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(linear, exact)
    whole = verdicts(go(made))
    exact.hooks.batch = 100
    monkeypatch.setattr(crew, "deadly", frozenset({1, 9}))
    report = go(made, workers=2)
    found = verdicts(report)
    assert {k for k, v in found.items() if v == "error"} == {(n, e) for n in (1, 9) for e in ("0.01", "0.1")}
    assert {r.outcome.reason for r in report.results if r.id in (1, 9)} == {"it died"}
    assert all(found[k] == whole[k] for k in whole if k[0] not in (1, 9))
    assert any(1 in p and len(p) > 1 for p in crew.given), "it was one of a batch first, or this shows nothing"


def test_workers_keep_budget_resume_and_alarms(
    linear: Path, exact: ModuleType, crew: type[InTurn], tmp_path: Path
) -> None:
    made = job(linear, exact)
    whole, out = verdicts(go(made)), tmp_path / "run"
    assert not go(made, out=out, budget=1e-6, workers=2).complete
    seen = 0

    def watch(progress: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(made, Preprocessing(), Output(out, resume=True, workers=3), watch)
    report = go(made, out=out, resume=True, workers=2)
    assert report.complete
    assert verdicts(report) == whole
    exact.hooks.spoil = lambda p, o: spoiled("proof beside a witness", p, o)
    assert len(go(made, workers=22).alarms) == 44


def test_real_processes_decide_as_this_one() -> None:
    """Two ReLU layers, complete search: as many verdicts, and the same, from two further processes."""
    import multiprocessing

    import torch

    torch.manual_seed(3)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    )
    x = np.random.default_rng(4).uniform(0, 1, size=(12, 3)).astype(np.float32)
    with torch.no_grad():
        data = (x, net(torch.as_tensor(x)).argmax(dim=1).numpy())
    reports = [certify.run(net, data, eps="0.02,0.1,0.3", workers=n, device="cpu") for n in (1, 2)]
    whole, shared = map(verdicts, reports)
    assert whole == shared
    assert {"verified", "falsified"} == set(whole.values())
    assert not multiprocessing.active_children()
    assert reports[1].options["workers"] == 2
