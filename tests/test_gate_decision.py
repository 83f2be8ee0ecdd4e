"""What a gate says when it stops early is what it would have said of the whole run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest

from certify.api import Output, Preprocessing, execute, make_job
from certify.frontends.data import load_data
from certify.frontends.onnx_import import load_model
from certify.gate import Conditions, Share
from certify.gate_baseline import Baseline
from certify.gate_decision import Gate, decide, enough
from certify.options import Radius, parse_eps
from certify.property import Property
from certify.runner import Job
from certify.settings import Settings
from certify.verdict import Outcome, Verdict


def some_baseline(job: Job, rng: random.Random) -> Baseline:
    """Any verdicts of some of the samples."""
    kinds = (Verdict.VERIFIED, Verdict.FALSIFIED, Verdict.UNKNOWN)
    ids = [int(i) for i in job.data.ids if rng.random() < 0.8]

    def verdicts(radius: Radius) -> dict[int, Verdict]:
        return {i: rng.choice(kinds) for i in ids}

    return Baseline(Path("old"), job.norm, job.input_range, "", {}, {r.key: verdicts(r) for r in job.radii})


@pytest.mark.parametrize("eps", ["0.1", "0.05,0.1", "0.01,0.1,0.3"])
@pytest.mark.parametrize("seed", range(4))
def test_stopping_early_changes_no_outcome(linear: Path, exact: ModuleType, eps: str, seed: int) -> None:
    """Some outcomes stay unknown, at some eps only, so that proofs of a larger one come to the help of a smaller."""
    job = make_job(
        load_model(str(linear / "net.onnx")),
        load_data(str(linear / "data.npz")),
        parse_eps(eps),
        "linf",
        Preprocessing(),
        Settings(),
    )
    rng = random.Random(f"{seed} {eps}")
    hidden = rng.random()

    def spoil(properties: Sequence[Property], outcomes: list[Outcome]) -> list[Outcome]:
        keys = [f"{seed} {o.lower} {p.cases[0].inputs.lower.sum()}" for p, o in zip(properties, outcomes, strict=True)]
        return [
            Outcome(Verdict.UNKNOWN, "hidden") if random.Random(k).random() < hidden else o
            for k, o in zip(keys, outcomes, strict=True)
        ]

    exact.hooks.spoil, exact.hooks.batch = spoil, rng.choice([1, 5])
    whole = execute(job, Preprocessing(), Output())

    def share() -> Share | None:
        return Share(Fraction(rng.randint(0, 24), 24), "") if rng.random() < 0.7 else None

    for _ in range(4):
        baseline = some_baseline(job, rng) if rng.random() < 0.5 else None
        regressed = Share(Fraction(rng.randint(0, 6), 24), "") if baseline else None
        gate = Gate(Conditions(share(), share(), share(), regressed), baseline)
        early = execute(job, Preprocessing(), Output(enough=enough(gate, job.radii)))
        first, last = decide(gate, early), decide(gate, whole)
        assert last.settled
        assert first.settled
        assert first.ruling == last.ruling, (gate.conditions, first, last)
