"""Nothing is verified but by a certificate that the checker accepts; what it does not goes back to the search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_models import halves, network

from certify.check.checker import Accepted, check, check_many
from certify.check.errors import NotExcluded, Rejected
from certify.errors import UsageError
from certify.frontends.onnx_import import load_model
from certify.judge import Asked, judge
from certify.machine import Machine
from certify.mip.decide import Decision
from certify.options import parse_eps
from certify.pipeline import decide
from certify.report.assurance import Assurance
from certify.report.result import checking
from certify.settings import Settings
from certify.store import SampleResult
from certify.verdict import CHECK_STAGE, Outcome, Verdict

(EPS,) = parse_eps("0.1")
KEEP = Settings(timeout=60, device="cpu", certificates=True)


def test_a_verified_outcome_bears_its_certificate_and_what_checking_took():
    model, prop = network(1), halves(network(1), -0.1)
    (outcome,) = decide(model, [prop], KEEP)
    assert outcome.verdict is Verdict.VERIFIED
    assert outcome.checked in ("real", "float32")
    assert outcome.seconds[CHECK_STAGE] > 0
    assert outcome.certificate_bytes == len(outcome.certificate)
    accepted = check(outcome.certificate, model.file)
    assert isinstance(accepted, Accepted)
    assert decide(model, [prop], replace(KEEP, certificates=False))[0].certificate is None


def test_without_the_check_a_verdict_says_so():
    (outcome,) = decide(network(1), [halves(network(1), -0.1)], replace(KEEP, check=False, certificates=False))
    assert outcome.verdict is Verdict.VERIFIED
    assert outcome.checked == ""
    assert checking(outcome) == "unchecked"


@pytest.mark.parametrize("kind", ["input splits", "neurons", "neurons after input splits"])
def test_what_the_checker_finds_open_is_split_further(kind, monkeypatch):
    """The first two checks are told to fail at some leaf: the tree grows there and is accepted as a larger one.

    Regression: where both searches had been at work, the leaf of one was taken for the other's.
    """
    leaves, calls = [], []

    def hard(datas, *arguments, **named):
        (data,) = datas
        (found,) = check_many(datas, *arguments, **named)
        calls.append(found.leaves)
        if len(calls) <= 2:
            from certify.check.content import NOT_SPLIT
            from certify.check.file import read_certificate

            (tree, *_) = read_certificate(data).cases[0].trees
            leaf = int(
                np.flatnonzero((tree.unit == NOT_SPLIT) & np.isin(np.arange(len(tree.unit)), tree.entry_node))[0]
            )
            leaves.append(leaf)
            return [NotExcluded("made up", [leaf])]
        return [found]

    monkeypatch.setattr("certify.judge.check_many", hard)
    if kind == "neurons":
        monkeypatch.setattr("certify.pipeline.may_split", lambda case: False)
    if kind != "input splits":
        monkeypatch.setattr(Machine, "programs", lambda *arguments: None)
    if kind == "neurons after input splits":
        monkeypatch.setattr("certify.pipeline.SPLIT_SHARE", 0.0)
        monkeypatch.setattr("certify.bab.input_split.InputSearch.promising", lambda *arguments: False)
    model = network(1, (3, 16, 16, 2))
    (outcome,) = decide(model, [halves(model, -0.1)], KEEP, many=kind != "input splits")
    assert outcome.verdict is Verdict.VERIFIED, outcome.reason
    assert len(calls) == 3
    assert calls[0] < calls[1] < calls[2]


def test_what_cannot_be_mended_is_unknown_with_the_reason(monkeypatch):
    def never(datas, *arguments, **named):
        return [Rejected("steps[0]: not today") for _ in datas]

    monkeypatch.setattr("certify.judge.check_many", never)
    (outcome,) = decide(network(1), [halves(network(1), -0.1)], KEEP)
    assert outcome.verdict is Verdict.UNKNOWN
    assert "steps[0]: not today" in outcome.reason
    assert outcome.lower == -np.inf
    assert not outcome.checked


def test_a_case_without_a_proof_is_not_accepted():
    model, prop = network(1), halves(network(1), -0.1)
    assert not judge(model, [Asked(prop, [None, None])])[0].accepted


@pytest.mark.parametrize("trust", [False, True])
def test_a_solvers_word_alone_is_unknown_or_counted_apart(trust, monkeypatch):
    word = Decision(-1.0, rests_on_solver=True)
    monkeypatch.setattr("certify.mip.decide.prove_by_mip", lambda *arguments: word)
    model = network(1)
    settings = replace(KEEP, method="mip", trust_solver=trust, attack=False)
    (outcome,) = decide(model, [halves(model, -0.1)], settings)
    assert outcome.verdict is (Verdict.VERIFIED if trust else Verdict.UNKNOWN)
    assert outcome.reason.startswith("solver only")
    assert checking(outcome) == ("solver only" if trust else "")
    counted = Assurance.of([SampleResult(0, 0, 0, EPS, outcome)])
    assert (counted.checked, counted.solver) == (0, int(trust))
    assert ("on a MIP solver's word only" in counted.sentence()) is trust


def test_a_gzipped_model_with_layers_before_it_is_checked_from_its_own_file(tmp_path):
    """The file is hashed as it is stored unpacked; mean and std are the certificate's, not the file's."""
    import gzip

    plain = network(1)
    path = tmp_path / "net.onnx.gz"
    path.write_bytes(gzip.compress(plain.file))
    model = load_model(path, mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 2.0], drop_softmax=False)
    (outcome,) = decide(model, [halves(model, -0.5)], KEEP)
    assert outcome.verdict is Verdict.VERIFIED, outcome.reason
    assert outcome.checked


def test_assurance_counts_levels_costs_and_sizes():
    def of(level, size, check):
        outcome = Outcome(Verdict.VERIFIED, "CROWN", checked=level, seconds={"CROWN": 2.0, CHECK_STAGE: check})
        return SampleResult(0, 0, 0, EPS, replace(outcome, certificate_bytes=size))

    found = Assurance.of([of("real", 1000, 0.5), of("float32", 3000, 0.25), of("", 0, 0.0)])
    assert (found.checked, found.float32, found.unchecked, found.solver) == (2, 1, 1, 0)
    assert (found.check_seconds, found.solve_seconds) == (0.75, 6.0)
    assert (found.median_bytes, found.largest_bytes) == (2000, 3000)
    assert "2 checked" in found.sentence()
    assert "1 unchecked" in found.sentence()
    assert Assurance.of([]).sentence() == ""


def test_what_needs_the_checker_is_refused_without_it():
    for asked in ({"arithmetic": "float32"}, {"certificates": True}):
        with pytest.raises(UsageError, match="only with the checker"):
            Settings(check=False, **asked)
